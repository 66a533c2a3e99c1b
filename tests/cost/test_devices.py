from tokc.cost import devices


class _Reader:
    def read_bandwidth(self) -> float:
        return 1e9


def test_the_executors_own_threads_read_memory_if_they_can() -> None:
    host = devices.probe(_Reader())
    assert host.read_bytes_per_s == 1e9
    assert "artifact's own threads" in host.how
    assert host.f32_flops_per_s > 1e8
    assert host.int8_flops_per_s >= host.f32_flops_per_s
    assert host.cores == devices.usable_cores()
