// Enough of CUDA to run one kernel on the CPU: every thread of a block is a context of its own, and
// all go from barrier to barrier in turn. Sound for kernels whose threads meet the same barriers.
#pragma once
#include <cmath>
#include <cstring>
#include <tuple>
#include <ucontext.h>
#include <vector>

using namespace std;
#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __expf expf
#define DYNAMIC_SHARED static float4 dynamic_shared[1 << 14];

struct float4 {
  float x, y, z, w;
};
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static float __fdividef(float a, float b) { return a / b; }

struct Index {
  unsigned x = 0;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {
static vector<ucontext_t> contexts;
static vector<vector<char>> stacks;
static vector<char> finished;
static ucontext_t scheduler;
static vector<double> exchanged;
static void (*body)();

static void enter() {
  body();
  finished[threadIdx.x] = 1;
}

static void run_block(unsigned threads) {
  contexts.assign(threads, ucontext_t());
  stacks.assign(threads, vector<char>(1 << 16));
  finished.assign(threads, 0);
  exchanged.assign(threads, 0);
  for (unsigned t = 0; t < threads; ++t) {
    getcontext(&contexts[t]);
    contexts[t].uc_stack.ss_sp = stacks[t].data();
    contexts[t].uc_stack.ss_size = stacks[t].size();
    contexts[t].uc_link = &scheduler;
    makecontext(&contexts[t], enter, 0);
  }
  for (bool going = true; going;) {
    going = false;
    for (unsigned t = 0; t < threads; ++t) {
      if (finished[t]) continue;
      going = true;
      threadIdx.x = t;
      swapcontext(&scheduler, &contexts[t]);
    }
  }
}
}  // namespace cuda_on_cpu

static void __syncthreads() {
  const unsigned t = threadIdx.x;
  swapcontext(&cuda_on_cpu::contexts[t], &cuda_on_cpu::scheduler);
}

template <class T>
static T __shfl_xor_sync(unsigned, T value, int apart) {
  const unsigned t = threadIdx.x;
  cuda_on_cpu::exchanged[t] = value;
  __syncthreads();
  T other = (T)cuda_on_cpu::exchanged[t ^ apart];
  __syncthreads();
  return other;
}

template <class... Arguments>
static void launch(unsigned blocks, unsigned threads, void (*kernel)(Arguments...), Arguments... arguments) {
  gridDim.x = blocks;
  blockDim.x = threads;
  static tuple<Arguments...> given;
  static void (*function)(Arguments...);
  given = make_tuple(arguments...);
  function = kernel;
  cuda_on_cpu::body = [] { apply(function, given); };
  for (unsigned b = 0; b < blocks; ++b) {
    blockIdx.x = b;
    cuda_on_cpu::run_block(threads);
  }
}
