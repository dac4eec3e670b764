"""Expert and linear kernels for CPUs, in C++ behind a plain C ABI; not linked to torch."""
