/* Prints the instruction sets of an x86 processor that the kernels may use, in the spelling of /proc/cpuinfo. */
#include <cpuid.h>
#include <stdio.h>

int main(void) {
    unsigned a, b, c, d;
    __cpuid(1, a, b, c, d);
    if (c & 1u << 12) puts("fma");
    if (c & 1u << 29) puts("f16c");
    __cpuid_count(7, 0, a, b, c, d);
    static const struct {
        int bit;
        const char *name;
    } in_b[] = {{5, "avx2"},      {8, "bmi2"},      {16, "avx512f"}, {17, "avx512dq"},
                {28, "avx512cd"}, {30, "avx512bw"}, {31, "avx512vl"}};
    for (unsigned i = 0; i < sizeof in_b / sizeof *in_b; i++)
        if (b >> in_b[i].bit & 1) puts(in_b[i].name);
    if (c & 1u << 11) puts("avx512_vnni");
    if (d & 1u << 24) puts("amx_tile");
    if (d & 1u << 25) puts("amx_int8");
    if (a >= 1) {
        __cpuid_count(7, 1, a, b, c, d);
        if (a & 1u << 4) puts("avx_vnni");
    }
    return 0;
}
