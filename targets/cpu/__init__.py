"""The CPU target: TIR kernels compiled by TVM."""
