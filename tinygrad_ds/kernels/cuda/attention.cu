// Causal attention by tiles, with the softmax brought up to date tile by tile (online softmax: Milakov and
// Gimelshein 2018; in attention: Dao et al. 2022). Nothing of size time_q time_k is written.
//
//   block: 4 warps; it owns 16 rows of one head, 4 to a warp, and walks past the other side 32 at a time
//
//                 keys j .. j + 31, one to each lane                 columns of the values, lane l: l, l + 32, ..
//   warp 0  q 0-3   | s s s s .. |                                     | y y y y .. |
//   warp 1  q 4-7   | s s s s .. |   scores in registers,              | y y y y .. |   sums in registers,
//   warp 2  q 8-11  | s s s s .. |   one a lane and query              | y y y y .. |   COLUMNS a lane and query
//   warp 3  q 12-15 | s s s s .. |                                     | y y y y .. |
//
// Scores need all d numbers of a key, values a whole row for a key: between the two, the weights of a tile go
// through shared memory (`weights`), a warp reading only what it wrote itself. The products of a tile are summed
// over DEEP numbers at a time, staged in shared memory (`scores`), so any d will do.
//
// Heads are read where they lie: for each array the entries from one batch row, head and time to the next.
// Query i sees the keys first_i <= j, and with causal j <= i + time_k - time_q. One that sees none gets 0.
//
// The launcher defines KEY_COLUMNS = ceil(d / 32) and VALUE_COLUMNS = ceil(d_v / 32).

const int ROWS = 16, MINE = 4, DEEP = 32;

struct Rows {
  const stored* at;
  long long step;  // entries from one row to the next
  long long count;
};

struct Stage {
  real rows[ROWS][DEEP + 1];  // one more, so that 32 lanes reading 32 rows find 32 different banks
  real others[32][DEEP + 1];
};

__device__ inline Rows head(const stored* at, long long batch, long long head_step, long long step, long long count,
                            long long b, long long h) {
  return {at + b * batch + h * head_step, step, count};
}

// found[r] = row (first_row + 4 warp + r) of a . row (first_other + lane) of b, over depth numbers; rows that
// are not there count as zeros. All threads of the block come here together.
__device__ inline void scores(Stage& stage, Rows a, long long first_row, Rows b, long long first_other,
                              long long depth, real found[MINE]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int r = 0; r < MINE; r++) found[r] = 0;
  for (long long deep = 0; deep < depth; deep += DEEP) {
    const long long i = deep + lane;
    for (int r = warp; r < ROWS; r += 4) {
      const long long n = first_row + r;
      stage.rows[r][lane] = n < a.count && i < depth ? a.at[n * a.step + i] : (real)0;
    }
    for (int r = warp; r < 32; r += 4) {
      const long long n = first_other + r;
      stage.others[r][lane] = n < b.count && i < depth ? b.at[n * b.step + i] : (real)0;
    }
    __syncthreads();
    for (int k = 0; k < DEEP; k++)
      for (int r = 0; r < MINE; r++) found[r] += stage.rows[warp * MINE + r][k] * stage.others[lane][k];
    __syncthreads();  // before anybody fills the stage again
  }
}

// sums[r][c] += sum over the 32 others of weights[row r of this warp][other] * column (lane + 32 c) of that other
template <int COLUMNS>
__device__ inline void add_rows(real (*weights)[33], Rows b, long long first_other, long long width,
                                real sums[MINE][COLUMNS]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long there = min(b.count - first_other, 32LL);
  for (int other = 0; other < there; other++) {
    const stored* row = b.at + (first_other + other) * b.step;
    for (int c = 0; c < COLUMNS; c++) {
      const long long i = lane + 32 * c;
      const real value = i < width ? row[i] : (real)0;
      for (int r = 0; r < MINE; r++) sums[r][c] += weights[warp * MINE + r][other] * value;
    }
  }
}

__device__ inline bool sees(long long i, long long j, long long time_q, long long time_k, long long first,
                            long long causal) {
  return i < time_q && j < time_k && j >= first && (!causal || j <= i + time_k - time_q);
}

// y (batch, time_q, heads, d_v) contiguous and lse (batch, heads, time_q) = log sum exp(s), +inf where nothing is seen:
// then exp(s - lse) is 0 for every s in backward.
//
//   grid (ceil(time_q / 16), heads, batch);  query head h reads key head h / group
extern "C" __global__ void forward(const stored* q, const stored* k, const stored* v, const long long* first, stored* y,
                                   real* lse, long long time_q, long long time_k, long long d, long long d_v,
                                   long long group, long long causal, double scale, long long q_b, long long q_h,
                                   long long q_t, long long k_b, long long k_h, long long k_t, long long v_b,
                                   long long v_h, long long v_t) {
  __shared__ Stage stage;
  __shared__ real weights[ROWS][33];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long b = blockIdx.z, h = blockIdx.y, heads = gridDim.y, start = (long long)blockIdx.x * ROWS;
  const Rows queries = head(q, q_b, q_h, q_t, time_q, b, h);
  const Rows keys = head(k, k_b, k_h, k_t, time_k, b, h / group);
  const Rows values = head(v, v_b, v_h, v_t, time_k, b, h / group);
  real top[MINE], total[MINE], sums[MINE][VALUE_COLUMNS];
  long long lowest[MINE];
  for (int r = 0; r < MINE; r++) {
    const long long i = start + warp * MINE + r;
    lowest[r] = first && i < time_q ? first[b * time_q + i] : 0;
    top[r] = -infinity();
    total[r] = 0;
    for (int c = 0; c < VALUE_COLUMNS; c++) sums[r][c] = 0;
  }
  const long long behind = causal ? min(time_k, start + ROWS + time_k - time_q) : time_k;  // no key from here on
  for (long long j = 0; j < behind; j += 32) {
    real s[MINE];
    scores(stage, queries, start, keys, j, d, s);
    for (int r = 0; r < MINE; r++) {
      const long long i = start + warp * MINE + r;
      const real score = sees(i, j + lane, time_q, time_k, lowest[r], causal) ? (real)scale * s[r] : -infinity();
      const real now = max(top[r], warp_max(score));
      const real p = now == -infinity() ? (real)0 : exp(score - now);
      const real before = now == -infinity() ? (real)1 : exp(top[r] - now);  // what earlier sums are worth now
      total[r] = total[r] * before + warp_sum(p);
      for (int c = 0; c < VALUE_COLUMNS; c++) sums[r][c] *= before;
      top[r] = now;
      weights[warp * MINE + r][lane] = p;
    }
    __syncwarp();
    add_rows<VALUE_COLUMNS>(weights, values, j, d_v, sums);
    __syncwarp();  // before the next tile's weights are written
  }
  for (int r = 0; r < MINE; r++) {
    const long long i = start + warp * MINE + r;
    if (i >= time_q) continue;
    if (lane == 0) lse[(b * heads + h) * time_q + i] = total[r] > 0 ? top[r] + log(total[r]) : infinity();
    for (int c = 0; c < VALUE_COLUMNS; c++)
      if (lane + 32 * c < d_v)
        y[((b * time_q + i) * heads + h) * d_v + lane + 32 * c] = total[r] > 0 ? sums[r][c] / total[r] : (real)0;
  }
}

// along (batch, heads, time_q) = g . y, which is sum_j P_ij dP_ij; a warp for each query, lanes along d_v.
// g and y: (batch, time_q, heads, d_v), contiguous.
extern "C" __global__ void backward_along(const stored* g, const stored* y, real* along, long long queries,
                                          long long heads, long long time_q, long long d_v) {
  const long long n = (long long)blockIdx.x * 4 + threadIdx.x / 32;  // counted as y lies: batch, time, head
  const int lane = threadIdx.x % 32;
  if (n >= queries) return;
  real sum = 0;
  for (long long c = lane; c < d_v; c += 32) sum += g[n * d_v + c] * y[n * d_v + c];
  sum = warp_sum(sum);
  const long long h = n % heads, i = n / heads % time_q, b = n / heads / time_q;
  if (lane == 0) along[(b * heads + h) * time_q + i] = sum;
}

// dL/dq = scale dS k with P = exp(scale q . k - lse), dP = g . v, dS = P (dP - along). Grid and tiles as in forward.
extern "C" __global__ void backward_q(const stored* q, const stored* k, const stored* v, const long long* first,
                                      const stored* g, const real* lse, const real* along, stored* grad_q,
                                      long long time_q, long long time_k, long long d, long long d_v, long long group,
                                      long long causal, double scale, long long q_b, long long q_h, long long q_t,
                                      long long k_b, long long k_h, long long k_t, long long v_b, long long v_h,
                                      long long v_t) {
  __shared__ Stage stage;
  __shared__ real weights[ROWS][33];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long b = blockIdx.z, h = blockIdx.y, heads = gridDim.y, start = (long long)blockIdx.x * ROWS;
  const Rows queries = head(q, q_b, q_h, q_t, time_q, b, h);
  const Rows keys = head(k, k_b, k_h, k_t, time_k, b, h / group);
  const Rows values = head(v, v_b, v_h, v_t, time_k, b, h / group);
  const Rows incoming = head(g, time_q * heads * d_v, d_v, heads * d_v, time_q, b, h);
  const long long statistics = (b * heads + h) * time_q;
  real sums[MINE][KEY_COLUMNS];
  for (int r = 0; r < MINE; r++)
    for (int c = 0; c < KEY_COLUMNS; c++) sums[r][c] = 0;
  const long long behind = causal ? min(time_k, start + ROWS + time_k - time_q) : time_k;
  for (long long j = 0; j < behind; j += 32) {
    real s[MINE], dp[MINE];
    scores(stage, queries, start, keys, j, d, s);
    scores(stage, incoming, start, values, j, d_v, dp);
    for (int r = 0; r < MINE; r++) {
      const long long i = start + warp * MINE + r;
      const bool seen = sees(i, j + lane, time_q, time_k, first && i < time_q ? first[b * time_q + i] : 0, causal);
      weights[warp * MINE + r][lane] =
          seen ? exp((real)scale * s[r] - lse[statistics + i]) * (dp[r] - along[statistics + i]) : (real)0;
    }
    __syncwarp();
    add_rows<KEY_COLUMNS>(weights, keys, j, d, sums);
    __syncwarp();
  }
  for (int r = 0; r < MINE; r++) {
    const long long i = start + warp * MINE + r;
    if (i >= time_q) continue;
    for (int c = 0; c < KEY_COLUMNS; c++)
      if (lane + 32 * c < d)
        grad_q[((b * time_q + i) * heads + h) * d + lane + 32 * c] = (real)scale * sums[r][c];
  }
}

// dL/dv = P^T g and dL/dk = scale dS^T q, summed over the queries of all heads of the group, in order: no atomics.
//
//   grid (ceil(time_k / 16), kv_heads, batch);  the block owns 16 keys, 4 to a warp, and 32 queries pass, one a lane
extern "C" __global__ void backward_kv(const stored* q, const stored* k, const stored* v, const long long* first,
                                       const stored* g, const real* lse, const real* along, stored* grad_k, stored* grad_v,
                                       long long time_q, long long time_k, long long d, long long d_v,
                                       long long group, long long causal, double scale, long long q_b, long long q_h,
                                       long long q_t, long long k_b, long long k_h, long long k_t, long long v_b,
                                       long long v_h, long long v_t) {
  __shared__ Stage stage;
  __shared__ real weights[ROWS][33];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long b = blockIdx.z, kv = blockIdx.y, kv_heads = gridDim.y, heads = kv_heads * group;
  const long long start = (long long)blockIdx.x * ROWS;
  const Rows keys = head(k, k_b, k_h, k_t, time_k, b, kv), values = head(v, v_b, v_h, v_t, time_k, b, kv);
  real of_k[MINE][KEY_COLUMNS], of_v[MINE][VALUE_COLUMNS];
  for (int r = 0; r < MINE; r++) {
    for (int c = 0; c < KEY_COLUMNS; c++) of_k[r][c] = 0;
    for (int c = 0; c < VALUE_COLUMNS; c++) of_v[r][c] = 0;
  }
  // With causal no query before this one sees the block's first key.
  const long long from = causal ? max(0LL, start - (time_k - time_q)) / 32 * 32 : 0;
  for (long long h = kv * group; h < (kv + 1) * group; h++) {
    const Rows queries = head(q, q_b, q_h, q_t, time_q, b, h);
    const Rows incoming = head(g, time_q * heads * d_v, d_v, heads * d_v, time_q, b, h);
    const long long statistics = (b * heads + h) * time_q;
    for (long long i = from; i < time_q; i += 32) {
      const long long query = i + lane, lowest = first && query < time_q ? first[b * time_q + query] : 0;
      real s[MINE], dp[MINE], p[MINE];
      bool seen[MINE];
      scores(stage, keys, start, queries, i, d, s);
      scores(stage, values, start, incoming, i, d_v, dp);
      for (int r = 0; r < MINE; r++) {
        seen[r] = sees(query, start + warp * MINE + r, time_q, time_k, lowest, causal);
        p[r] = seen[r] ? exp((real)scale * s[r] - lse[statistics + query]) : (real)0;
        weights[warp * MINE + r][lane] = p[r];
      }
      __syncwarp();
      add_rows<VALUE_COLUMNS>(weights, incoming, i, d_v, of_v);
      __syncwarp();
      for (int r = 0; r < MINE; r++)
        weights[warp * MINE + r][lane] = seen[r] ? p[r] * (dp[r] - along[statistics + query]) : (real)0;
      __syncwarp();
      add_rows<KEY_COLUMNS>(weights, queries, i, d, of_k);
      __syncwarp();
    }
  }
  for (int r = 0; r < MINE; r++) {
    const long long j = start + warp * MINE + r;
    if (j >= time_k) continue;
    const long long row = (b * time_k + j) * kv_heads + kv;
    for (int c = 0; c < KEY_COLUMNS; c++)
      if (lane + 32 * c < d) grad_k[row * d + lane + 32 * c] = (real)scale * of_k[r][c];
    for (int c = 0; c < VALUE_COLUMNS; c++)
      if (lane + 32 * c < d_v) grad_v[row * d_v + lane + 32 * c] = of_v[r][c];
  }
}
