"""Build MODEL OUT DTYPE CONTEXT and print what it took, as a process whose peak memory is the build's."""

import json
import sys
import time
from pathlib import Path

from tokc.compiler import Request, build, precision

KIB = 1024


def main(model: str, out: str, dtype: str, context: str) -> None:
    """Build without the differential check, which tests of its own cover."""
    start = time.perf_counter()
    request = Request(Path(model), precision=precision(dtype, None), context=int(context), check=False)
    build(request, Path(out))
    print(json.dumps({"build_s": round(time.perf_counter() - start, 2), "peak_rss_bytes": peak_rss_bytes()}))  # noqa: T201


def peak_rss_bytes() -> int:
    """Return this program's own peak; getrusage would count what its parent held before the exec."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * KIB


if __name__ == "__main__":
    main(*sys.argv[1:])
