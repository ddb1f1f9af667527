// A whole sequence in one kernel per direction, in float32 without tensor cores: a block takes ROWS
// sequences through all steps. The six hidden matrices stay on the chip: KEPT of them in registers,
// SHARED in shared memory, what is left is read from the cache at every step.
//
// LANES neighbouring threads share OUTS outputs: each multiplies its part of the factors, they add up
// with shuffles, and each goes on with PAIRS / LANES of the (sequence, output) pairs. A step has one
// barrier: what the outputs need of each other goes through shared memory, two buffers in turn.
//
// What a step reads is fetched into the second level of the cache AHEAD steps before (0: not), and
// into registers one step before.
//
// Defined before: UNITS, ROWS, LANES, OUTS, KEPT, SHARED, BLOCKS, AHEAD, MAIN, RECURRENT, OUTPUTS, SAVE.

#define THREADS (UNITS * LANES / OUTS)
#define PART (UNITS / LANES)
#define QUADS (PART / 4)
#define PAIRS (ROWS * OUTS)
#define MATRIX (OUTS * QUADS * THREADS)
static_assert(PAIRS <= LANES, "every pair needs a thread");

// Matrices lie as their threads read them: (6, OUTS, QUADS, THREADS) times four numbers.
struct Matrices {
  float kept[KEPT > 0 ? KEPT : 1][OUTS][PART];
  const float4 *shared, *rest;

  __device__ void load(const float4 *weights, float4 *room) {
#pragma unroll
    for (int m = 0; m < KEPT; ++m)
#pragma unroll
      for (int j = 0; j < OUTS; ++j)
#pragma unroll
        for (int q = 0; q < QUADS; ++q) {
          const float4 four = weights[m * MATRIX + (j * QUADS + q) * THREADS + threadIdx.x];
          kept[m][j][4 * q] = four.x, kept[m][j][4 * q + 1] = four.y;
          kept[m][j][4 * q + 2] = four.z, kept[m][j][4 * q + 3] = four.w;
        }
    for (int i = threadIdx.x; i < SHARED * MATRIX; i += THREADS) room[i] = weights[KEPT * MATRIX + i];
    shared = room + threadIdx.x;
    rest = weights + (KEPT + SHARED) * MATRIX + threadIdx.x;
  }

  template <int m>
  __device__ float4 four(int j, int q) const {
    if (m < KEPT) {
      const float *k = kept[m < KEPT ? m : 0][j] + 4 * q;
      return make_float4(k[0], k[1], k[2], k[3]);
    }
    const int place = (j * QUADS + q) * THREADS;
    if (m < KEPT + SHARED) return shared[(m - KEPT) * MATRIX + place];
    return rest[(m - KEPT - SHARED) * MATRIX + place];
  }
};

// sums[row, out] += x[row] . matrix[out], of this thread's part
template <int m>
__device__ __forceinline__ void add(float (&sums)[PAIRS], const float4 x, int row, const Matrices &w, int q) {
#pragma unroll
  for (int j = 0; j < OUTS; ++j) {
    const float4 four = w.template four<m>(j, q);
    float &sum = sums[row * OUTS + j];
    sum = fmaf(x.x, four.x, sum), sum = fmaf(x.y, four.y, sum);
    sum = fmaf(x.z, four.z, sum), sum = fmaf(x.w, four.w, sum);
  }
}

// The sum over LANES threads, of the pair that this thread goes on with.
__device__ __forceinline__ float collect(float (&sums)[PAIRS], int lane) {
  int left = PAIRS;
#pragma unroll
  for (int apart = LANES / 2; apart > 0; apart /= 2) {
    if (left > 1) {
      left /= 2;
      const bool upper = lane & apart;
#pragma unroll
      for (int i = 0; i < left; ++i) {
        const float given = upper ? sums[i] : sums[left + i], own = upper ? sums[left + i] : sums[i];
        sums[i] = own + __shfl_xor_sync(0xffffffffu, given, apart);
      }
    } else {
      sums[0] += __shfl_xor_sync(0xffffffffu, sums[0], apart);
    }
  }
  return sums[0];
}

__device__ __forceinline__ void fetch(const float *place) {
#ifdef __CUDACC__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(place));
#endif
}

__device__ __forceinline__ float relu(float x) { return x <= 0.0f ? 0.0f : x; }  // NaN stays NaN
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
__device__ __forceinline__ float squared_response(float y) { return MAIN ? y * y : relu(y) * relu(y); }

// Which numbers a thread goes on with.
#define PLACES                                                                                 \
  const int lane = threadIdx.x % LANES, pair = lane * PAIRS / LANES, own = pair / OUTS;          \
  const int out = threadIdx.x / LANES + pair % OUTS * (THREADS / LANES);                         \
  const int row = blockIdx.x * ROWS + own;                                                       \
  const bool live = row < batch && out < n, writes = lane % (LANES / PAIRS) == 0;                \
  const bool stores = live && writes;                                                            \
  const int unit = out < n ? out : 0;                                                            \
  const long long plane = (long long)batch * n, first = (long long)(row < batch ? row : 0) * n;  \
  const long long at = first + unit, at2 = 2 * first + unit, at3 = 3 * first + unit;             \
  const float rate_y = rates[unit], rate_a = rates[n + unit];                                    \
  const float rate_0 = rates[2 * n + unit], rate_1 = rates[3 * n + unit], square = sigma2[unit];

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
organics_forward(float *inputs, const float4 *weights, const float *rates, const float *sigma2, const float *start,
                 float *last, float *ys, float *tape_ya, float *tape_b, float *tape_h, int steps, int batch, int n) {
  DYNAMIC_SHARED
  PLACES
  float4 *vectors = dynamic_shared;  // [2][3][ROWS][UNITS / 4]
  Matrices w;
  w.load(weights, dynamic_shared + 2 * 3 * ROWS * UNITS / 4);
  float y = start[at], a = start[plane + at], b0 = start[2 * plane + at], b1 = start[3 * plane + at];
  float next0 = inputs[at3], next1 = inputs[n + at3], next_z = inputs[2 * n + at3];
  for (int t = 0; t < steps; ++t) {
    float *mine = (float *)(vectors + (t & 1) * 3 * ROWS * (UNITS / 4));
    if (writes) {
      mine[own * UNITS + out] = y;
      mine[(ROWS + own) * UNITS + out] = a;
      mine[(2 * ROWS + own) * UNITS + out] = relu(a) * squared_response(y);
    }
    __syncthreads();
    const float input0 = next0, input1 = next1, z = relu(next_z);
    float *here = inputs;
    if (t + 1 < steps) inputs += 3 * plane;
    next0 = inputs[at3], next1 = inputs[n + at3], next_z = inputs[2 * n + at3];
    if (AHEAD > 0 && t + AHEAD < steps) {
      const float *far = inputs + 3 * (AHEAD - 1) * plane + at3;
      fetch(far), fetch(far + n), fetch(far + 2 * n);
    }
    if (SAVE && stores) {
      tape_ya[at2] = y, tape_ya[n + at2] = a;
      tape_b[at2] = b0, tape_b[n + at2] = b1;
    }
    const float4 *x = (const float4 *)mine + lane;
    float sums0[PAIRS] = {}, sums1[PAIRS] = {}, sums_p[PAIRS] = {}, sums_h[PAIRS] = {};
#pragma unroll
    for (int q = 0; q < QUADS; ++q)
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const float4 four = x[r * (UNITS / 4) + q * LANES];
        add<0>(sums0, four, r, w, q);
        add<2>(sums1, four, r, w, q);
        if (RECURRENT) add<5>(sums_h, four, r, w, q);
      }
#pragma unroll
    for (int q = 0; q < QUADS; ++q)
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const float4 four = x[(ROWS + r) * (UNITS / 4) + q * LANES];
        add<1>(sums0, four, r, w, q);
        add<3>(sums1, four, r, w, q);
      }
#pragma unroll
    for (int q = 0; q < QUADS; ++q)
#pragma unroll
      for (int r = 0; r < ROWS; ++r) add<4>(sums_p, x[(2 * ROWS + r) * (UNITS / 4) + q * LANES], r, w, q);
    const float target0 = sigmoid(input0 + collect(sums0, lane));
    const float target1 = sigmoid(input1 + collect(sums1, lane));
    const float h = RECURRENT ? collect(sums_h, lane) : y;
    const float pool = collect(sums_p, lane);
    if (SAVE && stores) {
      here[at3] = target0, here[n + at3] = target1;
      if (RECURRENT) tape_h[at] = h;
    }
    tape_ya += 2 * plane, tape_b += 2 * plane, tape_h += plane;
    const float drive = MAIN ? h : relu(h);
    y += rate_y * (b1 * z - y + (1.0f - sqrtf(relu(a))) * drive);
    a += rate_a * (square * b0 * b0 - a + pool);
    b0 += rate_0 * (target0 - b0);
    b1 += rate_1 * (target1 - b1);
    if (OUTPUTS && stores) ys[at] = y;
    ys += plane;
  }
  if (stores) last[at] = y, last[plane + at] = a, last[2 * plane + at] = b0, last[3 * plane + at] = b1;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
organics_backward(const float *inputs, const float *tape_ya, const float *tape_b, const float *tape_h,
                  const float *g_ys, float *g_inputs, float *g_h, float *g_a, float *pools, const float4 *weights,
                  const float *rates, const float *sigma2, const float *g_last, float *g_start, float *g_rates,
                  int steps, int batch, int n) {
  DYNAMIC_SHARED
  PLACES
  float4 *vectors = dynamic_shared;  // [2][4][ROWS][UNITS / 4]
  Matrices w;
  w.load(weights, dynamic_shared + 2 * 4 * ROWS * UNITS / 4);
  float gy = g_last[at], ga = g_last[plane + at], g0 = g_last[2 * plane + at], g1 = g_last[3 * plane + at];
  float sum_y = 0, sum_a = 0, sum_0 = 0, sum_1 = 0;
  float next_0 = inputs[at3], next_1 = inputs[n + at3], next_z = inputs[2 * n + at3];
  float next_y = tape_ya[at2], next_a = tape_ya[n + at2], next_b0 = tape_b[at2], next_b1 = tape_b[n + at2];
  float next_h = RECURRENT ? tape_h[at] : 0.0f, next_g = OUTPUTS ? g_ys[at] : 0.0f;
  for (int t = 0; t < steps; ++t) {
    const float target0 = next_0, target1 = next_1, raw_z = next_z, y = next_y, a = next_a, b0 = next_b0, b1 = next_b1;
    const float h = RECURRENT ? next_h : y;
    gy += next_g;
    if (t + 1 < steps) {
      inputs -= 3 * plane, tape_ya -= 2 * plane, tape_b -= 2 * plane;
      if (RECURRENT) tape_h -= plane;
      if (OUTPUTS) g_ys -= plane;
    }
    next_0 = inputs[at3], next_1 = inputs[n + at3], next_z = inputs[2 * n + at3];
    next_y = tape_ya[at2], next_a = tape_ya[n + at2], next_b0 = tape_b[at2], next_b1 = tape_b[n + at2];
    if (RECURRENT) next_h = tape_h[at];
    if (OUTPUTS) next_g = g_ys[at];
    if (AHEAD > 0 && t + AHEAD < steps) {
      const long long far = (AHEAD - 1) * plane;
      fetch(inputs - 3 * far + at3), fetch(inputs - 3 * far + n + at3), fetch(inputs - 3 * far + 2 * n + at3);
      fetch(tape_ya - 2 * far + at2), fetch(tape_ya - 2 * far + n + at2);
      fetch(tape_b - 2 * far + at2), fetch(tape_b - 2 * far + n + at2);
      if (RECURRENT) fetch(tape_h - far + at);
      if (OUTPUTS) fetch(g_ys - far + at);
    }
    const float positive = relu(a), root = sqrtf(positive), response = MAIN ? y : relu(y), drive = MAIN ? h : relu(h);
    const float z = relu(raw_z), change_y = rate_y * gy, change_a = rate_a * ga;
    const float delta0 = rate_0 * g0 * target0 * (1.0f - target0), delta1 = rate_1 * g1 * target1 * (1.0f - target1);
    const float delta_h = MAIN || !(h <= 0.0f) ? change_y * (1.0f - root) : 0.0f;
    float *mine = (float *)(vectors + (t & 1) * 4 * ROWS * (UNITS / 4));
    if (writes) {
      mine[own * UNITS + out] = delta0;
      mine[(ROWS + own) * UNITS + out] = delta1;
      mine[(2 * ROWS + own) * UNITS + out] = change_a;
      if (RECURRENT) mine[(3 * ROWS + own) * UNITS + out] = delta_h;
    }
    __syncthreads();
    if (stores) {
      g_inputs[at3] = delta0, g_inputs[n + at3] = delta1;
      g_inputs[2 * n + at3] = raw_z <= 0.0f ? 0.0f : change_y * b1;
      g_a[at] = ga, pools[at] = positive * response * response;
      if (RECURRENT) g_h[at] = delta_h;
    }
    g_inputs -= 3 * plane, g_a -= plane, pools -= plane, g_h -= plane;
    sum_y += gy * (b1 * z - y + (1.0f - root) * drive);
    sum_a += ga * (square * b0 * b0 - a);
    sum_0 += g0 * (target0 - b0);
    sum_1 += g1 * (target1 - b1);
    const float4 *x = (const float4 *)mine + lane;
    float sums_y[PAIRS] = {}, sums_a[PAIRS] = {}, sums_p[PAIRS] = {};
#pragma unroll
    for (int q = 0; q < QUADS; ++q)
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const float4 four = x[r * (UNITS / 4) + q * LANES];
        add<0>(sums_y, four, r, w, q);
        add<1>(sums_a, four, r, w, q);
      }
#pragma unroll
    for (int q = 0; q < QUADS; ++q)
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const float4 four = x[(ROWS + r) * (UNITS / 4) + q * LANES];
        add<2>(sums_y, four, r, w, q);
        add<3>(sums_a, four, r, w, q);
      }
#pragma unroll
    for (int q = 0; q < QUADS; ++q)
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        add<4>(sums_p, x[(2 * ROWS + r) * (UNITS / 4) + q * LANES], r, w, q);
        if (RECURRENT) add<5>(sums_y, x[(3 * ROWS + r) * (UNITS / 4) + q * LANES], r, w, q);
      }
    float new_y = collect(sums_y, lane), new_a = collect(sums_a, lane);
    const float g_pool = collect(sums_p, lane);
    if (!RECURRENT) new_y += delta_h;
    new_y += g_pool * 2.0f * positive * response;
    if (!(a <= 0.0f)) new_a += g_pool * response * response - __fdividef(0.5f * change_y * drive, root);
    gy += new_y - change_y;
    ga += new_a - change_a;
    g0 += 2.0f * change_a * square * b0 - rate_0 * g0;
    g1 += change_y * z - rate_1 * g1;
  }
  if (stores) g_start[at] = gy, g_start[plane + at] = ga, g_start[2 * plane + at] = g0, g_start[3 * plane + at] = g1;
  if (writes && out < n) {  // of every sequence; those beyond the batch give nothing
    float *sums = g_rates + (long long)row * 4 * n + out;
    const float weight = live ? 1.0f : 0.0f;
    sums[0] = weight * sum_y, sums[n] = weight * sum_a, sums[2 * n] = weight * sum_0, sums[3 * n] = weight * sum_1;
  }
}
