import pytest

from tokc.cost import devices


class _Reader:
    def read_bandwidth(self, size_bytes: int) -> float:
        assert size_bytes == devices.PROBE_BYTES
        return 1e9


def test_the_executors_own_threads_read_memory_if_they_can() -> None:
    host = devices.probe(_Reader())
    assert host.read_bytes_per_s == 1e9
    assert "artifact's own threads" in host.how
    assert host.f32_flops_per_s > 1e8
    assert host.int8_flops_per_s >= host.f32_flops_per_s
    assert host.cores == devices.usable_cores()


def test_the_kernels_instructions_decide_on_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_features", lambda: frozenset({"avx2", "avx512_vnni", "amx_int8"}))
    ratios = [
        host.int8_flops_per_s / host.f32_flops_per_s
        for host in (devices.probe(_Reader(), ("avx2", "avx512_vnni")), devices.probe(_Reader(), ("avx2",)))
    ]
    assert ratios == [pytest.approx(4.0), pytest.approx(4.0 / 3.0)]


def test_ones_own_work_is_not_foreign() -> None:
    watch = devices.CpuWatch()
    assert 0.0 <= watch.foreign_share() <= 1.0
