// What every source of kernels begins with. sqlora.train.cuda.compiler compiles it, with the source of the one kernel
// that is wanted behind it, by NVRTC; tests/unit/test_kernels.py runs them on a CPU.
//
// T is the arrays' type; `get` and `put` turn it into float and back, and all sums are of floats. KERNEL(name) declares a
// kernel, and USE_name says which one is wanted. Widths of matrices are multiples of 8.

typedef unsigned long long Size;

struct alignas(4 * sizeof(T)) Four {
    T at[4];
};

struct alignas(16) Eight {
    T at[8];
};

__device__ inline Four four(const T* from) { return *(const Four*)from; }
__device__ inline Eight eight(const T* from) { return *(const Eight*)from; }

__device__ inline float sum_of_warp(float value) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}
