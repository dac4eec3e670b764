"""Expert kernels for CUDA devices. Nothing here imports Triton before a kernel is asked for."""
