// NIBBLE_HD: marks a function that runs on the host and on a CUDA device. Without nvcc it is a plain
// always-inlined function, so the host compiler tests exactly the code that the GPU runs.
#pragma once

#if defined(__CUDACC__)
#define NIBBLE_HD __host__ __device__ __forceinline__
#else
// always_inline: files compiled for a wider instruction set must not leave an out-of-line copy that the
// linker could choose for the whole program.
#define NIBBLE_HD inline __attribute__((always_inline))
#endif
