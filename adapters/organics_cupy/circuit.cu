// A batch of small circuits, every step of a run in one launch.
//
// LANES neighbouring threads work on one neuron, PACK circuits share a block. The rows of W and W_r
// stay in registers; what the neurons send to each other goes through shared memory. The method is the
// Runge-Kutta tableau in STAGES, A, B and C, written in front of this text together with
//   REAL      float or double            N         neurons
//   SOURCE, DRIVE, RESPONSE  1 for what the variant rectifies
//   RECURRENT 0 where W_r is the identity
//   NOISE     0 none, 1 drawn here (Philox 4x32-10), 2 given increments
//   EXPONENTIAL 1 for the exponential Euler method
// The vector field is organics_core.circuit.balance.

#define PER_LANE ((N + LANES - 1) / LANES)
#define PADDED (PER_LANE * LANES)

__device__ inline REAL relu(REAL x) { return x <= 0 ? REAL(0) : x; }  // NaN stays NaN

#if NOISE == 1
// Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011).
__device__ inline void philox(unsigned *c, unsigned k0, unsigned k1) {
  for (int round = 0; round < 10; ++round) {
    unsigned long long p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
    unsigned c0 = (unsigned)(p1 >> 32) ^ c[1] ^ k0, c2 = (unsigned)(p0 >> 32) ^ c[3] ^ k1;
    c[0] = c0;
    c[1] = (unsigned)p1;
    c[2] = c2;
    c[3] = (unsigned)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// Two independent standard normal numbers of one (step, circuit, neuron); Box and Muller.
__device__ inline void normals(unsigned long long seed, long long step, long long circuit, int row, REAL *out) {
  unsigned c[4] = {(unsigned)step, (unsigned)(step >> 32), (unsigned)circuit, (unsigned)row};
  philox(c, (unsigned)seed, (unsigned)(seed >> 32));
  const REAL scale = REAL(1) / REAL(4294967296.0);
  // in (0, 1]: the second word adds the low bits that double precision has room for
  REAL u = (REAL(c[0]) + (REAL(c[1]) + 1) * scale) * scale;
  REAL v = (REAL(c[2]) + REAL(c[3]) * scale) * scale;
  REAL radius = sqrt(REAL(-2) * log(u)), angle = REAL(6.283185307179586) * v;
  out[0] = radius * cos(angle);
  out[1] = radius * sin(angle);
}
#endif

// Per circuit: drive (times or 1, batch, N); floor, tau_y, tau_a, start (batch, N); amplitude (batch, 2 N);
// increments (steps, batch, 2 N). Matrices have a stride of 0 where all circuits share them.
extern "C" __global__ void organics_run(const REAL *w_r, long long w_r_stride, const REAL *w, long long w_stride,
                                        const REAL *drive, long long drive_stride, const REAL *floor_a,
                                        const REAL *tau_y, const REAL *tau_a, const REAL *amplitude,
                                        const REAL *increments, const REAL *start_y, const REAL *start_a,
                                        const REAL *times, long long intervals, long long substeps,
                                        unsigned long long seed, long long batch, REAL *out_y, REAL *out_a) {
  const REAL a_[STAGES][STAGES] = A;
  const REAL b_[STAGES] = B, c_[STAGES] = C;
  __shared__ REAL sent[2][PACK + 1][2][PADDED];  // the last slot takes what surplus threads write
  const int lane = threadIdx.x % LANES, row = threadIdx.x / LANES % N, slot = threadIdx.x / (LANES * N);
  const long long mine = (long long)blockIdx.x * PACK + slot;
  const bool real = slot < PACK && mine < batch;
  const long long circuit = real ? mine : 0;
  const long long at = circuit * N + row;

  REAL to_w[PER_LANE];
#if RECURRENT
  REAL to_r[PER_LANE];
#endif
#pragma unroll
  for (int k = 0; k < PER_LANE; ++k) {
    const int from = k * LANES + lane;
    to_w[k] = from < N ? w[circuit * w_stride + (long long)row * N + from] : REAL(0);
#if RECURRENT
    to_r[k] = from < N ? w_r[circuit * w_r_stride + (long long)row * N + from] : REAL(0);
#endif
  }
  for (int i = threadIdx.x; i < 2 * (PACK + 1) * 2 * PADDED; i += blockDim.x) (&sent[0][0][0][0])[i] = 0;
  __syncthreads();

  REAL y = start_y[at], a = start_a[at];
  const REAL floor_ = floor_a[at], ty = tau_y[at], ta = tau_a[at];
#if NOISE
  const REAL amplitude_y = amplitude[2 * circuit * N + row], amplitude_a = amplitude[(2 * circuit + 1) * N + row];
#endif
  int buffer = 0;
  for (long long i = 0; i < intervals; ++i) {
    const REAL h = (times[i + 1] - times[i]) / REAL(substeps);
    const REAL d0 = drive[i * drive_stride + at], d1 = drive[(drive_stride ? i + 1 : i) * drive_stride + at];
    for (long long s = 0; s < substeps; ++s) {
      REAL kick_y = 0, kick_a = 0;
#if NOISE == 1
      REAL both[2];
      normals(seed, i * substeps + s, circuit, row, both);
      kick_y = amplitude_y * sqrt(h) * both[0];
      kick_a = amplitude_a * sqrt(h) * both[1];
#elif NOISE == 2
      const REAL *db = increments + ((i * substeps + s) * batch + circuit) * 2 * N + row;
      kick_y = amplitude_y * db[0];
      kick_a = amplitude_a * db[N];
#endif
      REAL slope_y[STAGES], slope_a[STAGES];
#pragma unroll
      for (int stage = 0; stage < STAGES; ++stage) {
        REAL ys = y, as = a;
#pragma unroll
        for (int j = 0; j < stage; ++j) {
          ys += h * a_[stage][j] * slope_y[j];
          as += h * a_[stage][j] * slope_a[j];
        }
        ys += c_[stage] * kick_y;
        as += c_[stage] * kick_a;
        const REAL response = RESPONSE ? relu(ys) : ys, source = SOURCE ? relu(ys) : ys;
        if (lane == 0) {
          sent[buffer][real ? slot : PACK][0][row] = relu(as) * response * response;
          sent[buffer][real ? slot : PACK][1][row] = source;
        }
        __syncthreads();
        REAL pool = 0, recurrent = RECURRENT ? REAL(0) : source;
#pragma unroll
        for (int k = 0; k < PER_LANE; ++k) {
          pool += to_w[k] * sent[buffer][real ? slot : PACK][0][k * LANES + lane];
#if RECURRENT
          recurrent += to_r[k] * sent[buffer][real ? slot : PACK][1][k * LANES + lane];
#endif
        }
#pragma unroll
        for (int apart = LANES / 2; apart > 0; apart /= 2) {
          pool += __shfl_xor_sync(0xffffffffu, pool, apart);
#if RECURRENT
          recurrent += __shfl_xor_sync(0xffffffffu, recurrent, apart);
#endif
        }
        buffer ^= 1;  // the next stage writes elsewhere: one barrier per stage is enough
        if (DRIVE) recurrent = relu(recurrent);
        const REAL z = d0 + (REAL(s) + c_[stage]) / REAL(substeps) * (d1 - d0);
        slope_y[stage] = (z - ys + (1 - sqrt(relu(as))) * recurrent) / ty;
        slope_a[stage] = (floor_ - as + pool) / ta;
      }
      REAL mean_y = 0, mean_a = 0;
#pragma unroll
      for (int j = 0; j < STAGES; ++j) {
        mean_y += b_[j] * slope_y[j];
        mean_a += b_[j] * slope_a[j];
      }
#if EXPONENTIAL
      y -= ty * expm1(-h / ty) * mean_y;
      a -= ta * expm1(-h / ta) * mean_a;
#else
      y += h * mean_y + kick_y;
      a += h * mean_a + kick_a;
#endif
    }
    if (real && lane == 0) {
      out_y[i * batch * N + at] = y;
      out_a[i * batch * N + at] = a;
    }
  }
}
