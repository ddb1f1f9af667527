// Products of a matrix and vectors that a CUDA graph can hold: cupy lets no call of cuBLAS or cuSPARSE be recorded.
//
// LANES neighbouring threads of a warp sum one row. Written in front of this text:
//   REAL    float or double
//   LANES   a power of two, at most 32
//   VECTORS vectors that share a reading of the matrix

__device__ inline REAL over_lanes(REAL sum) {
#pragma unroll
  for (int apart = LANES / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
  return sum;
}

// out[v, row] = sum of matrix[v, row, :] x[v, :]; the stride is 0 for a matrix that all vectors share, and
// VECTORS is 1 for one that they do not.
extern "C" __global__ void organics_dense(const REAL *matrix, long long stride, const REAL *x, REAL *out,
                                          long long rows, long long columns, long long vectors) {
  const long long group = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / LANES;
  const int lane = threadIdx.x % LANES;
  const long long row = group % rows, first = group / rows * VECTORS;
  const bool real = first < vectors;
  REAL sum[VECTORS];
#pragma unroll
  for (int v = 0; v < VECTORS; ++v) sum[v] = 0;
  if (real) {
    const REAL *weights = matrix + first * stride + row * columns;
#pragma unroll 4
    for (long long k = lane; k < columns; k += LANES) {
      const REAL weight = weights[k];
#pragma unroll
      for (int v = 0; v < VECTORS; ++v)
        if (first + v < vectors) sum[v] += weight * x[(first + v) * columns + k];
    }
  }
#pragma unroll
  for (int v = 0; v < VECTORS; ++v) {
    const REAL total = over_lanes(sum[v]);
    if (real && lane == 0 && first + v < vectors) out[(first + v) * rows + row] = total;
  }
}

// out = a matrix in compressed rows times x.
extern "C" __global__ void organics_sparse(const REAL *data, const int *columns, const int *starts, const REAL *x,
                                           REAL *out, long long rows) {
  const long long row = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / LANES;
  REAL sum = 0;
  if (row < rows) {
    for (int k = starts[row] + (int)(threadIdx.x % LANES); k < starts[row + 1]; k += LANES)
      sum += data[k] * x[columns[k]];
  }
  sum = over_lanes(sum);
  if (row < rows && threadIdx.x % LANES == 0) out[row] = sum;
}
