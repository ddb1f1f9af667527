// The trained cell over a whole sequence, forward and backward, in one pass per block of sequences.
//
// Sequences of a batch do not see one another, so each thread takes blocks of them through all steps
// without meeting the others. Per step, the matrix products of a block go panel by panel through registers
// and the elementwise part follows while the panel is in the nearest cache.
//
//     z  = max(W_zx x, 0)                       h = W_r y, yh = max(h, 0) or h
//     B0 = sigmoid(W_bx0 x + W_by0 y + W_ba0 a)        B1 likewise
//     b0 <- b0 + r_b0 (B0 - b0)                        b1 likewise
//     y  <- y + r_y (-y + b1 z + (1 - sqrt(max(a, 0))) yh)
//     a  <- a + r_a (-a + (sigma b0)^2 + W p),         p = max(a, 0) resp(y)^2
//
// The tape keeps y, a, B0, B1 and h of every step; z, b0, b1 and p are cheap to have again. With
// checkpoints, the tape of one period at a time is computed again from the state at its start.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#if defined(__linux__)
// The threads of OpenMP, where torch has brought them. They stay awake for a while after torch's own operations, and
// others would have to share the cores with them.
extern "C" void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
static const pid_t loaded_by = getpid();  // they are not there in a forked child
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kRows = 12;
#elif defined(__AVX__)
constexpr int kBytes = 32, kRows = 6;
#elif defined(__aarch64__)
constexpr int kBytes = 16, kRows = 8;
#else
constexpr int kBytes = 16, kRows = 4;
#endif

template <class T> struct Vector;
template <> struct Vector<float> {
    typedef float type __attribute__((vector_size(kBytes), aligned(4), may_alias));
};
template <> struct Vector<double> {
    typedef double type __attribute__((vector_size(kBytes), aligned(8), may_alias));
};
template <class T> constexpr int kLane = kBytes / int(sizeof(T));
template <class T> constexpr int kPanel = 2 * kLane<T>;

// Indices into the array of 64-bit arguments; native.py knows the same order.
enum {
    STEPS, BATCH, INPUTS, UNITS, MAIN, THREADS, ROWS, CHUNK, PERIOD, KEEP,
    X_T, X_R, Y_T, Y_R, GY_T, GY_R, GX_T, GX_R,
    X, W_ZX, W_R, W, W_BX0, W_BY0, W_BA0, W_BX1, W_BY1, W_BA1,
    R_Y, R_A, R_B0, R_B1, SIGMA,
    START, YS, LAST, TAPE, MARKS,
    G_YS, G_LAST, G_X, G_START,
    G_W_ZX, G_W_R, G_W, G_W_BX0, G_W_BY0, G_W_BA0, G_W_BX1, G_W_BY1, G_W_BA1,
    G_R_Y, G_R_A, G_R_B0, G_R_B1, G_SIGMA,
    ARGUMENTS
};

// ---- matrix products ------------------------------------------------------------------------------------

template <class T> struct Part {  // one term of a sum of products: rows of a times a panel of b
    const T *a;
    ptrdiff_t row, inner;  // strides of a
    const T *b;
    ptrdiff_t b_row;
    ptrdiff_t length;
};

template <class T, int M, bool ADD> inline void tile(const Part<T> *parts, int count, ptrdiff_t first, T *out, ptrdiff_t ld) {
    using V = typename Vector<T>::type;
    V c0[M], c1[M];
    for (int m = 0; m < M; ++m) c0[m] = V{}, c1[m] = V{};
    for (int p = 0; p < count; ++p) {
        const Part<T> part = parts[p];
        const T *a = part.a + first * part.row;
        const T *b = part.b;
        const ptrdiff_t row = part.row;
        for (ptrdiff_t k = 0; k < part.length; ++k, a += part.inner, b += part.b_row) {
            const V b0 = *reinterpret_cast<const V *>(b), b1 = *reinterpret_cast<const V *>(b + kLane<T>);
#pragma GCC unroll 12
            for (int m = 0; m < M; ++m) {
                const V x = a[m * row] - V{};
                c0[m] += x * b0;
                c1[m] += x * b1;
            }
        }
    }
    for (int m = 0; m < M; ++m) {
        V *o = reinterpret_cast<V *>(out + (first + m) * ld);
        V *q = reinterpret_cast<V *>(out + (first + m) * ld + kLane<T>);
        *o = ADD ? *o + c0[m] : c0[m];
        *q = ADD ? *q + c1[m] : c1[m];
    }
}

template <class T, bool ADD, int M>
inline void rest(const Part<T> *parts, int count, ptrdiff_t first, ptrdiff_t left, T *out, ptrdiff_t ld) {
    if constexpr (M > 0) {
        if (left == M) return tile<T, M, ADD>(parts, count, first, out, ld);
        rest<T, ADD, M - 1>(parts, count, first, left, out, ld);
    }
}

// out[rows, panel] = (or +=) sum over parts
template <class T, bool ADD> void product(const Part<T> *parts, int count, ptrdiff_t rows, T *out, ptrdiff_t ld) {
    ptrdiff_t i = 0;
    for (; i + kRows <= rows; i += kRows) tile<T, kRows, ADD>(parts, count, i, out, ld);
    rest<T, ADD, kRows - 1>(parts, count, i, rows - i, out, ld);
}

// ---- elementwise ----------------------------------------------------------------------------------------

inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 87.0f ? 87.0f : x;
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const float k = (x * 1.44269504088896341f + shift) - shift;
    float r = x - k * 0.693359375f;
    r = r - k * -2.12194440e-4f;
    // Taylor polynomial on |r| <= log(2) / 2: truncation below 1e-8
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const int32_t bits = (int32_t(k) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}
inline double exponential(double x) { return std::exp(x); }

template <class T> inline T sigmoid(T x) { return T(1) / (T(1) + exponential(-x)); }
template <class T> inline T positive(T x) { return T(0) > x ? T(0) : x; }  // NaN stays NaN

// ---- memory ---------------------------------------------------------------------------------------------

template <class T> class Arena {  // aligned scratch of one thread
  public:
    explicit Arena(size_t count) : size_(count) {
        const size_t bytes = (count * sizeof(T) + 255) / 64 * 64;
        data_ = static_cast<T *>(std::aligned_alloc(64, bytes));
        if (!data_) throw std::bad_alloc();
        std::memset(data_, 0, bytes);
    }
    ~Arena() { std::free(data_); }
    Arena(const Arena &) = delete;
    Arena &operator=(const Arena &) = delete;
    T *take(size_t count) {
        T *p = data_ + used_;
        used_ += (count + 15) / 16 * 16;
        return p;
    }

  private:
    T *data_;
    size_t size_, used_ = 0;
};

void prefer_large_pages(void *start, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t size = uintptr_t(2) << 20;
    const uintptr_t from = (reinterpret_cast<uintptr_t>(start) + size - 1) / size * size;
    const uintptr_t to = (reinterpret_cast<uintptr_t>(start) + bytes) / size * size;
    if (to > from) madvise(reinterpret_cast<void *>(from), to - from, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}

// ---- the sequence ---------------------------------------------------------------------------------------

template <class T> struct Sequence {
    const int64_t *arg;
    ptrdiff_t steps, batch, k, n, np, kp, rows, chunk, period, panels, k_panels;
    bool main, identity, keep;
    int threads;
    // weights in panels: [panel][inner][kPanel], zero beyond n
    std::vector<T> storage;
    T *zx, *x0, *x1, *y0, *a0, *y1, *a1, *r, *w;               // for the forward products
    T *by0, *ba0, *by1, *ba1, *br, *bw, *bzx, *bx0, *bx1;      // transposed, for the backward ones
    T *ry, *ra, *r0, *r1, *sigma2;

    template <class U = T> U *at(int i) const { return reinterpret_cast<U *>(arg[i]); }

    explicit Sequence(const int64_t *arguments, bool backward) : arg(arguments) {
        steps = arg[STEPS], batch = arg[BATCH], k = arg[INPUTS], n = arg[UNITS];
        main = arg[MAIN] != 0, identity = arg[W_R] == 0, keep = arg[KEEP] != 0;
        threads = int(arg[THREADS]), rows = arg[ROWS], chunk = arg[CHUNK], period = arg[PERIOD];
        panels = (n + kPanel<T> - 1) / kPanel<T>, np = panels * kPanel<T>;
        k_panels = (k + kPanel<T> - 1) / kPanel<T>, kp = k_panels * kPanel<T>;
        const ptrdiff_t square = n * np, input = k * np, back = n * kp;
        storage.assign(size_t(6 * square + 3 * input + (backward ? 6 * square + 3 * back : 0) + 5 * np), T(0));
        T *next = storage.data();
        auto take = [&](ptrdiff_t count) { T *p = next; next += count; return p; };
        zx = take(input), x0 = take(input), x1 = take(input);
        y0 = take(square), a0 = take(square), y1 = take(square), a1 = take(square), r = take(square), w = take(square);
        ry = take(np), ra = take(np), r0 = take(np), r1 = take(np), sigma2 = take(np);
        pack(zx, W_ZX, k), pack(x0, W_BX0, k), pack(x1, W_BX1, k);
        pack(y0, W_BY0, n), pack(a0, W_BA0, n), pack(y1, W_BY1, n), pack(a1, W_BA1, n), pack(w, W, n);
        if (!identity) pack(r, W_R, n);
        std::copy_n(at(R_Y), n, ry), std::copy_n(at(R_A), n, ra);
        std::copy_n(at(R_B0), n, r0), std::copy_n(at(R_B1), n, r1);
        for (ptrdiff_t i = 0; i < n; ++i) sigma2[i] = at(SIGMA)[i] * at(SIGMA)[i];
        if (!backward) return;
        by0 = take(square), ba0 = take(square), by1 = take(square), ba1 = take(square);
        br = take(square), bw = take(square), bzx = take(back), bx0 = take(back), bx1 = take(back);
        pack_transposed(by0, W_BY0, n), pack_transposed(ba0, W_BA0, n);
        pack_transposed(by1, W_BY1, n), pack_transposed(ba1, W_BA1, n);
        if (!identity) pack_transposed(br, W_R, n);
        pack_transposed(bw, W, n, ra);
        pack_transposed(bzx, W_ZX, k), pack_transposed(bx0, W_BX0, k), pack_transposed(bx1, W_BX1, k);
    }

    // matrix (n, inner) -> [panel over n][inner][kPanel]
    void pack(T *to, int index, ptrdiff_t inner) const {
        const T *m = at(index);
        for (ptrdiff_t i = 0; i < n; ++i)
            for (ptrdiff_t c = 0; c < inner; ++c)
                to[(i / kPanel<T> * inner + c) * kPanel<T> + i % kPanel<T>] = m[i * inner + c];
    }
    // matrix (n, inner) -> [panel over inner][n][kPanel], rows scaled
    void pack_transposed(T *to, int index, ptrdiff_t inner, const T *scale = nullptr) const {
        const T *m = at(index);
        for (ptrdiff_t i = 0; i < n; ++i)
            for (ptrdiff_t c = 0; c < inner; ++c)
                to[(c / kPanel<T> * n + i) * kPanel<T> + c % kPanel<T>] = m[i * inner + c] * (scale ? scale[i] : T(1));
    }

    ptrdiff_t blocks() const { return (batch + rows - 1) / rows; }
    ptrdiff_t periods() const { return (steps + period - 1) / period; }
    ptrdiff_t tape_arrays() const { return identity ? 4 : 5; }
    // tape of one chunk: start b0 and b1, then y, a, B0, B1 (and h) for every step
    ptrdiff_t chunk_tape() const { return (2 + tape_arrays() * chunk) * rows * np; }
    ptrdiff_t block_tape(ptrdiff_t length) const { return (length + chunk - 1) / chunk * chunk_tape(); }

    struct Tape {
        T *b0, *b1, *y, *a, *target0, *target1, *h;
    };
    Tape tape_at(T *p) const {
        const ptrdiff_t one = rows * np, many = chunk * one;
        Tape t{p, p + one, p + 2 * one, nullptr, nullptr, nullptr, nullptr};
        t.a = t.y + many, t.target0 = t.a + many, t.target1 = t.target0 + many;
        t.h = identity ? t.y : t.target1 + many;
        return t;
    }

    struct Scratch {
        T *y, *a, *b0, *b1, *p, *p_next, *x, *panel, *tape;
    };
    size_t scratch_size(bool local_period) const {
        const size_t one = size_t(rows * np) + 16;
        return 6 * one + size_t(chunk * rows * k) + 16 + 5 * (size_t(rows) * kPanel<T> + 16) +
               size_t(local_period ? block_tape(period) : chunk_tape()) + 16;
    }
    Scratch scratch(Arena<T> &arena, bool local_period) const {
        const size_t one = size_t(rows * np);
        Scratch s{};
        s.y = arena.take(one), s.a = arena.take(one), s.b0 = arena.take(one), s.b1 = arena.take(one);
        s.p = arena.take(one), s.p_next = arena.take(one);
        s.x = arena.take(size_t(chunk * rows * k));
        s.panel = arena.take(5 * size_t(rows) * kPanel<T>);
        s.tape = arena.take(size_t(local_period ? block_tape(period) : chunk_tape()));
        return s;
    }

    void load_inputs(T *to, ptrdiff_t step, ptrdiff_t count, ptrdiff_t first, ptrdiff_t R) const {
        const T *x = at(X);
        for (ptrdiff_t s = 0; s < count; ++s)
            for (ptrdiff_t i = 0; i < R; ++i)
                std::memcpy(to + (s * R + i) * k, x + (step + s) * arg[X_T] + (first + i) * arg[X_R], sizeof(T) * size_t(k));
    }

    // a batch of states (4, batch, n) <-> the four local arrays
    void load_state(const T *from, Scratch &s, ptrdiff_t first, ptrdiff_t R) const {
        T *to[4] = {s.y, s.a, s.b0, s.b1};
        for (int f = 0; f < 4; ++f)
            for (ptrdiff_t i = 0; i < R; ++i)
                std::memcpy(to[f] + i * np, from + (f * batch + first + i) * n, sizeof(T) * size_t(n));
    }
    void store_state(T *to, const T *y, const T *a, const T *b0, const T *b1, ptrdiff_t first, ptrdiff_t R) const {
        const T *from[4] = {y, a, b0, b1};
        for (int f = 0; f < 4; ++f)
            for (ptrdiff_t i = 0; i < R; ++i)
                std::memcpy(to + (f * batch + first + i) * n, from[f] + i * np, sizeof(T) * size_t(n));
    }

    void pool(const T *y, const T *a, T *p, ptrdiff_t count) const {
        if (main)
            for (ptrdiff_t i = 0; i < count; ++i) p[i] = positive(a[i]) * y[i] * y[i];
        else
            for (ptrdiff_t i = 0; i < count; ++i) p[i] = positive(a[i]) * positive(y[i]) * positive(y[i]);
    }

    template <bool MAIN_, bool EYE>
    void update(ptrdiff_t R, ptrdiff_t j, const Scratch &s, const T *y, const T *a, T *yn, T *an, const Tape &t,
                ptrdiff_t at_step) const {
        constexpr int P = kPanel<T>;
        const ptrdiff_t block = R * P;
        for (ptrdiff_t i = 0; i < R; ++i) {
            const ptrdiff_t o = i * np + j * P;
            const T *__restrict u = s.panel + i * P;
            const T *__restrict yo = y + o, *__restrict ao = a + o;
            const T *__restrict q_ry = ry + j * P, *__restrict q_ra = ra + j * P, *__restrict q_r0 = r0 + j * P;
            const T *__restrict q_r1 = r1 + j * P, *__restrict q_s = sigma2 + j * P;
            T *__restrict b0 = s.b0 + o, *__restrict b1 = s.b1 + o, *__restrict p = s.p_next + o;
            T *__restrict yw = yn + o, *__restrict aw = an + o;
            T *__restrict t0 = t.target0 + at_step + o, *__restrict t1 = t.target1 + at_step + o;
            T *__restrict th = t.h + at_step + o;
#pragma GCC ivdep
            for (int c = 0; c < P; ++c) {
                const T target0 = sigmoid(u[c]), target1 = sigmoid(u[block + c]);
                const T z = positive(u[2 * block + c]), q = u[3 * block + c];
                const T yc = yo[c], ac = ao[c], b0c = b0[c], b1c = b1[c];
                const T h = EYE ? yc : u[4 * block + c];
                const T drive = MAIN_ ? h : positive(h);
                const T y_new = yc + q_ry[c] * (b1c * z - yc + (T(1) - std::sqrt(positive(ac))) * drive);
                const T a_new = ac + q_ra[c] * (q_s[c] * b0c * b0c - ac + q);
                const T response = MAIN_ ? y_new : positive(y_new);
                yw[c] = y_new;
                aw[c] = a_new;
                b0[c] = b0c + q_r0[c] * (target0 - b0c);
                b1[c] = b1c + q_r1[c] * (target1 - b1c);
                p[c] = positive(a_new) * response * response;
                t0[c] = target0;
                t1[c] = target1;
                if (!EYE) th[c] = h;
            }
        }
    }

    // `count` steps from the state in s, filling the tape; the new state in s.
    void forward_chunk(Scratch &s, const Tape &t, ptrdiff_t step, ptrdiff_t count, ptrdiff_t first, ptrdiff_t R,
                       T *ys) const {
        constexpr int P = kPanel<T>;
        const ptrdiff_t one = R * np;
        load_inputs(s.x, step, count, first, R);
        std::copy_n(s.b0, one, t.b0), std::copy_n(s.b1, one, t.b1);
        std::copy_n(s.y, one, t.y), std::copy_n(s.a, one, t.a);
        for (ptrdiff_t i = 0; i < count; ++i) {
            const T *y = t.y + i * one, *a = t.a + i * one, *x = s.x + i * R * k;
            T *yn = i + 1 < count ? t.y + (i + 1) * one : s.y, *an = i + 1 < count ? t.a + (i + 1) * one : s.a;
            for (ptrdiff_t j = 0; j < panels; ++j) {
                const ptrdiff_t in = j * k * P, sq = j * n * P;
                const Part<T> gate0[3] = {{x, k, 1, x0 + in, P, k}, {y, np, 1, y0 + sq, P, n}, {a, np, 1, a0 + sq, P, n}};
                const Part<T> gate1[3] = {{x, k, 1, x1 + in, P, k}, {y, np, 1, y1 + sq, P, n}, {a, np, 1, a1 + sq, P, n}};
                const Part<T> drive[1] = {{x, k, 1, zx + in, P, k}};
                const Part<T> norm[1] = {{s.p, np, 1, w + sq, P, n}};
                product<T, false>(gate0, 3, R, s.panel, P);
                product<T, false>(gate1, 3, R, s.panel + R * P, P);
                product<T, false>(drive, 1, R, s.panel + 2 * R * P, P);
                product<T, false>(norm, 1, R, s.panel + 3 * R * P, P);
                if (identity) {
                    if (main) update<true, true>(R, j, s, y, a, yn, an, t, i * one);
                    else update<false, true>(R, j, s, y, a, yn, an, t, i * one);
                } else {
                    const Part<T> recur[1] = {{y, np, 1, r + sq, P, n}};
                    product<T, false>(recur, 1, R, s.panel + 4 * R * P, P);
                    if (main) update<true, false>(R, j, s, y, a, yn, an, t, i * one);
                    else update<false, false>(R, j, s, y, a, yn, an, t, i * one);
                }
            }
            std::swap(s.p, s.p_next);
            if (ys)
                for (ptrdiff_t q = 0; q < R; ++q)
                    std::memcpy(ys + (step + i) * arg[Y_T] + (first + q) * arg[Y_R], yn + q * np, sizeof(T) * size_t(n));
        }
    }

    void forward_thread(int thread, Scratch s) const {
        T *const kept = at(TAPE), *const marks = at(MARKS);
        for (ptrdiff_t b = thread; b < blocks(); b += threads) {
            const ptrdiff_t first = b * rows, R = std::min(rows, batch - first);
            load_state(at(START), s, first, R);
            pool(s.y, s.a, s.p, R * np);
            for (ptrdiff_t step = 0; step < steps; step += chunk) {
                if (marks && step % period == 0)
                    store_state(marks + step / period * 4 * batch * n, s.y, s.a, s.b0, s.b1, first, R);
                T *p = kept ? kept + b * block_tape(steps) + step / chunk * chunk_tape() : s.tape;
                forward_chunk(s, tape_at(p), step, std::min(chunk, steps - step), first, R, at(YS));
            }
            store_state(at(LAST), s.y, s.a, s.b0, s.b1, first, R);
        }
    }

    // ---- backward ----

    struct Gradients {  // of one thread, and what a chunk needs
        T *gy, *ga, *g0, *g1, *y_add, *b0, *b1, *z, *p;
        T *d0, *d1, *dh, *da, *dz, *gx;
        T *wy0, *wa0, *wy1, *wa1, *wr, *w, *xz, *x0, *x1;  // weights; those of the input transposed, (k, np)
        double *rates;                                      // and sigma: (5, np)
    };

    size_t gradients_size() const {
        const size_t one = size_t(rows * np) + 16, many = size_t(chunk * rows * np) + 16;
        return 4 * one + 9 * many + size_t(rows * kp) + 16 + 6 * (size_t(n * np) + 16) + 3 * (size_t(k * np) + 16);
    }
    Gradients gradients(Arena<T> &arena, double *rates) const {
        const size_t one = size_t(rows * np), many = size_t(chunk * rows * np), sq = size_t(n * np), in = size_t(k * np);
        Gradients g{};
        g.gy = arena.take(one), g.ga = arena.take(one), g.g0 = arena.take(one), g.g1 = arena.take(one);
        for (T **p : {&g.b0, &g.b1, &g.z, &g.p, &g.d0, &g.d1, &g.dh, &g.da, &g.dz}) *p = arena.take(many);
        g.gx = arena.take(size_t(rows * kp));
        for (T **p : {&g.wy0, &g.wa0, &g.wy1, &g.wa1, &g.wr, &g.w}) *p = arena.take(sq);
        for (T **p : {&g.xz, &g.x0, &g.x1}) *p = arena.take(in);
        g.rates = rates;
        return g;
    }

    // z, p, b0 and b1 of every step of the chunk
    void again(const Gradients &g, const Tape &t, const T *x, ptrdiff_t count, ptrdiff_t R) const {
        constexpr int P = kPanel<T>;
        const ptrdiff_t one = R * np;
        for (ptrdiff_t j = 0; j < panels; ++j) {
            const Part<T> drive[1] = {{x, k, 1, zx + j * k * P, P, k}};
            product<T, false>(drive, 1, count * R, g.z + j * P, np);
        }
        pool(t.y, t.a, g.p, count * one);
        std::copy_n(t.b0, one, g.b0), std::copy_n(t.b1, one, g.b1);
        for (ptrdiff_t i = 0; i + 1 < count; ++i)
            for (ptrdiff_t q = 0; q < R; ++q) {
                const ptrdiff_t o = i * one + q * np;
                T *__restrict b0 = g.b0 + o, *__restrict b1 = g.b1 + o;
                const T *__restrict t0 = t.target0 + o, *__restrict t1 = t.target1 + o;
#pragma GCC ivdep
                for (ptrdiff_t c = 0; c < np; ++c) {
                    b0[one + c] = b0[c] + r0[c] * (t0[c] - b0[c]);
                    b1[one + c] = b1[c] + r1[c] * (t1[c] - b1[c]);
                }
            }
    }

    // Everything of one step's derivative that needs no product: deltas, and the part of the adjoint that stays put.
    template <bool MAIN_, bool EYE>
    void deltas(const Gradients &g, const Tape &t, ptrdiff_t o, ptrdiff_t R) const {
        constexpr int P = kPanel<T>;
        for (ptrdiff_t j = 0; j < panels; ++j) {
            T sum_y[P] = {}, sum_a[P] = {}, sum_0[P] = {}, sum_1[P] = {}, sum_s[P] = {};
            const T *__restrict q_ry = ry + j * P, *__restrict q_ra = ra + j * P, *__restrict q_r0 = r0 + j * P;
            const T *__restrict q_r1 = r1 + j * P, *__restrict q_s = sigma2 + j * P;
            for (ptrdiff_t i = 0; i < R; ++i) {
                const ptrdiff_t l = i * np + j * P, m = o + l;
                T *__restrict gy = g.gy + l, *__restrict ga = g.ga + l, *__restrict g0 = g.g0 + l, *__restrict g1 = g.g1 + l;
                const T *__restrict y = t.y + m, *__restrict a = t.a + m, *__restrict h = t.h + m;
                const T *__restrict t0 = t.target0 + m, *__restrict t1 = t.target1 + m;
                const T *__restrict z = g.z + m, *__restrict b0 = g.b0 + m, *__restrict b1 = g.b1 + m;
                T *__restrict d0 = g.d0 + m, *__restrict d1 = g.d1 + m, *__restrict dh = g.dh + m;
                T *__restrict da = g.da + m, *__restrict dz = g.dz + m;
#pragma GCC ivdep
                for (int c = 0; c < P; ++c) {
                    const T gyc = gy[c], gac = ga[c], g0c = g0[c], g1c = g1[c], yc = y[c], ac = a[c];
                    const T b0c = b0[c], b1c = b1[c], zc = z[c], t0c = t0[c], t1c = t1[c];
                    const T hc = EYE ? yc : h[c];
                    const T drive = MAIN_ ? hc : positive(hc), zp = positive(zc);
                    const T root = std::sqrt(positive(ac)), gate = T(1) - root;
                    const T u = q_ry[c] * gyc, v = q_ra[c] * gac, v0 = q_r0[c] * g0c, v1 = q_r1[c] * g1c;
                    sum_y[c] += gyc * (b1c * zp - yc + gate * drive);
                    sum_a[c] += gac * (q_s[c] * b0c * b0c - ac);
                    sum_s[c] += gac * b0c * b0c;
                    sum_0[c] += g0c * (t0c - b0c);
                    sum_1[c] += g1c * (t1c - b1c);
                    const T through = MAIN_ || !(hc <= T(0)) ? u * gate : T(0);
                    dh[c] = through;
                    da[c] = gac;
                    d0[c] = v0 * t0c * (T(1) - t0c);
                    d1[c] = v1 * t1c * (T(1) - t1c);
                    dz[c] = zc <= T(0) ? T(0) : u * b1c;
                    gy[c] = gyc - u + (EYE ? through : T(0));
                    ga[c] = gac - v - (ac <= T(0) ? T(0) : T(0.5) * u * drive / root);
                    g0[c] = g0c - v0 + T(2) * v * q_s[c] * b0c;
                    g1[c] = g1c - v1 + u * zp;
                }
            }
            double *out = g.rates + j * P;
            for (int c = 0; c < P; ++c) {
                out[c] += double(sum_y[c]);
                out[np + c] += double(sum_a[c]);
                out[2 * np + c] += double(sum_0[c]);
                out[3 * np + c] += double(sum_1[c]);
                out[4 * np + c] += double(sum_s[c]);
            }
        }
    }

    template <bool MAIN_> void collect(const Gradients &g, const Tape &t, const T *panel, ptrdiff_t j, ptrdiff_t o, ptrdiff_t R) const {
        constexpr int P = kPanel<T>;
        for (ptrdiff_t i = 0; i < R; ++i) {
            const ptrdiff_t l = i * np + j * P, m = o + l;
            T *__restrict gy = g.gy + l, *__restrict ga = g.ga + l;
            const T *__restrict y = t.y + m, *__restrict a = t.a + m, *__restrict u = panel + i * P;
#pragma GCC ivdep
            for (int c = 0; c < P; ++c) {
                const T response = MAIN_ ? y[c] : positive(y[c]), gp = u[2 * R * P + c];
                gy[c] += u[c] + T(2) * gp * positive(a[c]) * response;
                ga[c] += u[R * P + c] + (a[c] <= T(0) ? T(0) : gp * response * response);
            }
        }
    }

    void weight_gradients(const Gradients &g, const Tape &t, const T *x, ptrdiff_t length) const {
        constexpr int P = kPanel<T>;
        const struct { const T *delta, *source; T *out; } squares[6] = {
            {g.d0, t.y, g.wy0}, {g.d0, t.a, g.wa0}, {g.d1, t.y, g.wy1}, {g.d1, t.a, g.wa1}, {g.da, g.p, g.w}, {g.dh, t.y, g.wr}};
        const struct { const T *delta; T *out; } inputs[3] = {{g.dz, g.xz}, {g.d0, g.x0}, {g.d1, g.x1}};
        constexpr ptrdiff_t kInner = 128;
        for (ptrdiff_t q = 0; q < length; q += kInner) {
            const ptrdiff_t some = std::min(kInner, length - q);
            for (int f = 0; f < (identity ? 5 : 6); ++f)
                for (ptrdiff_t j = 0; j < panels; ++j) {
                    const Part<T> part[1] = {{squares[f].delta + q * np, 1, np, squares[f].source + q * np + j * P, np, some}};
                    product<T, true>(part, 1, n, squares[f].out + j * P, np);
                }
            for (const auto &input : inputs)
                for (ptrdiff_t j = 0; j < panels; ++j) {
                    const Part<T> part[1] = {{x + q * k, 1, k, input.delta + q * np + j * P, np, some}};
                    product<T, true>(part, 1, k, input.out + j * P, np);
                }
        }
    }

    void backward_chunk(const Gradients &g, Scratch &s, const Tape &t, ptrdiff_t step, ptrdiff_t count, ptrdiff_t first,
                        ptrdiff_t R) const {
        constexpr int P = kPanel<T>;
        const ptrdiff_t one = R * np;
        load_inputs(s.x, step, count, first, R);
        again(g, t, s.x, count, R);
        for (ptrdiff_t i = count - 1; i >= 0; --i) {
            const ptrdiff_t o = i * one;
            if (const T *from = at(G_YS))
                for (ptrdiff_t q = 0; q < R; ++q) {
                    const T *__restrict add = from + (step + i) * arg[GY_T] + (first + q) * arg[GY_R];
                    T *__restrict gy = g.gy + q * np;
                    for (ptrdiff_t c = 0; c < n; ++c) gy[c] += add[c];
                }
            if (identity) {
                if (main) deltas<true, true>(g, t, o, R);
                else deltas<false, true>(g, t, o, R);
            } else {
                if (main) deltas<true, false>(g, t, o, R);
                else deltas<false, false>(g, t, o, R);
            }
            const T *d0 = g.d0 + o, *d1 = g.d1 + o, *dh = g.dh + o, *da = g.da + o, *dz = g.dz + o;
            for (ptrdiff_t j = 0; j < panels; ++j) {
                const ptrdiff_t sq = j * n * P;
                const Part<T> to_y[3] = {{d0, np, 1, by0 + sq, P, n}, {d1, np, 1, by1 + sq, P, n}, {dh, np, 1, br + sq, P, n}};
                const Part<T> to_a[2] = {{d0, np, 1, ba0 + sq, P, n}, {d1, np, 1, ba1 + sq, P, n}};
                const Part<T> to_p[1] = {{da, np, 1, bw + sq, P, n}};
                product<T, false>(to_y, identity ? 2 : 3, R, s.panel, P);
                product<T, false>(to_a, 2, R, s.panel + R * P, P);
                product<T, false>(to_p, 1, R, s.panel + 2 * R * P, P);
                if (main) collect<true>(g, t, s.panel, j, o, R);
                else collect<false>(g, t, s.panel, j, o, R);
            }
            if (T *to = at(G_X)) {
                for (ptrdiff_t j = 0; j < k_panels; ++j) {
                    const ptrdiff_t in = j * n * P;
                    const Part<T> to_x[3] = {{dz, np, 1, bzx + in, P, n}, {d0, np, 1, bx0 + in, P, n}, {d1, np, 1, bx1 + in, P, n}};
                    product<T, false>(to_x, 3, R, g.gx + j * P, kp);
                }
                for (ptrdiff_t q = 0; q < R; ++q)
                    std::memcpy(to + (step + i) * arg[GX_T] + (first + q) * arg[GX_R], g.gx + q * kp, sizeof(T) * size_t(k));
            }
        }
        weight_gradients(g, t, s.x, count * R);
    }

    void backward_thread(int thread, Arena<T> &arena, const Gradients &g) const {
        Scratch s = scratch(arena, !keep);
        T *const kept = at(TAPE), *const marks = at(MARKS);
        for (ptrdiff_t b = thread; b < blocks(); b += threads) {
            const ptrdiff_t first = b * rows, R = std::min(rows, batch - first);
            for (T *p : {g.gy, g.ga, g.g0, g.g1}) std::fill_n(p, rows * np, T(0));
            if (const T *from = at(G_LAST)) {
                T *const to[4] = {g.gy, g.ga, g.g0, g.g1};
                for (int f = 0; f < 4; ++f)
                    for (ptrdiff_t i = 0; i < R; ++i)
                        std::memcpy(to[f] + i * np, from + (f * batch + first + i) * n, sizeof(T) * size_t(n));
            }
            for (ptrdiff_t c = periods() - 1; c >= 0; --c) {
                const ptrdiff_t from = c * period, to = std::min(steps, from + period);
                T *tape = kept ? kept + b * block_tape(steps) + from / chunk * chunk_tape() : s.tape;
                if (!kept) {
                    load_state(marks + c * 4 * batch * n, s, first, R);
                    pool(s.y, s.a, s.p, R * np);
                    for (ptrdiff_t step = from; step < to; step += chunk)
                        forward_chunk(s, tape_at(tape + (step - from) / chunk * chunk_tape()), step,
                                      std::min(chunk, to - step), first, R, nullptr);
                }
                for (ptrdiff_t step = from + (to - from - 1) / chunk * chunk; step >= from; step -= chunk)
                    backward_chunk(g, s, tape_at(tape + (step - from) / chunk * chunk_tape()), step,
                                   std::min(chunk, to - step), first, R);
            }
            if (T *to = at(G_START)) store_state(to, g.gy, g.ga, g.g0, g.g1, first, R);
        }
    }

    void add_square(const T *from, int index) const {
        if (T *to = at(index))
            for (ptrdiff_t i = 0; i < n; ++i)
                for (ptrdiff_t c = 0; c < n; ++c) to[i * n + c] += from[i * np + c];
    }
    void add_input(const T *from, int index) const {
        T *to = at(index);
        for (ptrdiff_t i = 0; i < n; ++i)
            for (ptrdiff_t c = 0; c < k; ++c) to[i * k + c] += from[c * np + i];
    }
    void finish(const Gradients &g) const {
        add_square(g.wy0, G_W_BY0), add_square(g.wa0, G_W_BA0), add_square(g.wy1, G_W_BY1), add_square(g.wa1, G_W_BA1);
        if (!identity) add_square(g.wr, G_W_R);
        add_input(g.xz, G_W_ZX), add_input(g.x0, G_W_BX0), add_input(g.x1, G_W_BX1);
        // g.w is the sum of (adjoint of a) p^T: the gradient of W but for r_a, and what W adds to that of r_a
        const T *weights = at(W);
        const int rates[4] = {G_R_Y, G_R_A, G_R_B0, G_R_B1};
        for (ptrdiff_t i = 0; i < n; ++i) {
            double pooled = 0;
            for (ptrdiff_t c = 0; c < n; ++c) {
                pooled += double(weights[i * n + c]) * double(g.w[i * np + c]);
                at(G_W)[i * n + c] += ra[i] * g.w[i * np + c];
            }
            for (int f = 0; f < 4; ++f) at(rates[f])[i] += T(g.rates[f * np + i] + (f == 1 ? pooled : 0.0));
            if (T *to = at(G_SIGMA)) to[i] += T(2) * at(SIGMA)[i] * ra[i] * T(g.rates[4 * np + i]);
        }
    }
};

// work(0) .. work(threads - 1), each once, in as many threads as can be had; 1 if one failed
template <class F> int in_threads(int threads, const F &work) {
    struct Job {
        const F &work;
        const int threads;
        std::atomic<int> next{0}, failed{0};
    } job{work, threads};
    void (*const take)(void *) = [](void *given) {
        Job &job = *static_cast<Job *>(given);
        for (int i; (i = job.next++) < job.threads;) {
            try {
                job.work(i);
            } catch (...) {
                job.failed = 1;
            }
        }
    };
#if defined(__linux__)
    if (threads > 1 && GOMP_parallel && getpid() == loaded_by) {
        GOMP_parallel(take, &job, unsigned(threads), 0);
        return job.failed;
    }
#endif
    std::vector<std::thread> others;
    try {
        for (int i = 1; i < threads; ++i) others.emplace_back(take, &job);
    } catch (...) {  // no thread to be had: the others do its work
    }
    take(&job);
    for (auto &other : others) other.join();
    return job.failed;
}

// Whether all sizes are in range and all memory is there that a pass needs
bool given(const int64_t *arg, bool backward) {
    for (int i : {INPUTS, UNITS, THREADS, ROWS, CHUNK, PERIOD})
        if (arg[i] < 1) return false;
    if (arg[STEPS] < 0 || arg[BATCH] < 0) return false;
    for (int i = W_ZX; i <= SIGMA; ++i)
        if (!arg[i] && i != W_R) return false;
    if (!arg[STEPS] || !arg[BATCH]) return true;
    if (!backward) return arg[X] && arg[START] && arg[LAST];
    for (int i = G_W_ZX; i <= G_R_B1; ++i)
        if (!arg[i] && (i != G_W_R || arg[W_R])) return false;
    return arg[X] && (arg[KEEP] ? arg[TAPE] : arg[MARKS]);
}

struct InThreads {
    template <class F> int operator()(int threads, const F &work) const { return in_threads(threads, work); }
};

template <class T, class Run> int forward(const int64_t *arg, const Run &run) {
    if (!given(arg, false)) return 2;
    try {
        const Sequence<T> sequence(arg, false);
        if (arg[TAPE]) prefer_large_pages(sequence.at(TAPE), sizeof(T) * size_t(sequence.blocks() * sequence.block_tape(sequence.steps)));
        return run(sequence.threads, [&](int thread) {
            Arena<T> arena(sequence.scratch_size(false));
            sequence.forward_thread(thread, sequence.scratch(arena, false));
        });
    } catch (...) {
        return 1;
    }
}

// The same pass again and again, at the same addresses: the weights stay packed and the scratch stays there.
template <class T> struct Stream {
    const std::vector<int64_t> arg;
    const Sequence<T> sequence;
    std::vector<std::unique_ptr<Arena<T>>> arenas;
    std::vector<typename Sequence<T>::Scratch> scratch;

    explicit Stream(const int64_t *given) : arg(given, given + ARGUMENTS), sequence(arg.data(), false) {
        for (int i = 0; i < sequence.threads; ++i) {
            arenas.push_back(std::make_unique<Arena<T>>(sequence.scratch_size(false)));
            scratch.push_back(sequence.scratch(*arenas.back(), false));
        }
    }
    void step() const {
        in_threads(sequence.threads, [&](int i) { sequence.forward_thread(i, scratch[size_t(i)]); });
    }
};

template <class T> void *open_stream(const int64_t *arg) {
    if (!given(arg, false)) return nullptr;
    try {
        return new Stream<T>(arg);
    } catch (...) {
        return nullptr;
    }
}

template <class T, class Run> int backward(const int64_t *arg, const Run &run) {
    if (!given(arg, true)) return 2;
    try {
        const Sequence<T> sequence(arg, true);
        const size_t size = sequence.scratch_size(!sequence.keep) + sequence.gradients_size();
        std::vector<std::unique_ptr<Arena<T>>> arenas;
        std::vector<typename Sequence<T>::Gradients> all(static_cast<size_t>(sequence.threads));
        std::vector<double> rates(size_t(sequence.threads) * 5 * size_t(sequence.np), 0.0);
        arenas.resize(size_t(sequence.threads));
        const int failed = run(sequence.threads, [&](int thread) {
            const size_t i = size_t(thread);
            arenas[i] = std::make_unique<Arena<T>>(size);
            all[i] = sequence.gradients(*arenas[i], rates.data() + i * 5 * size_t(sequence.np));
            sequence.backward_thread(thread, *arenas[i], all[i]);
        });
        if (failed) return 1;
        for (const auto &g : all) sequence.finish(g);  // in fixed order: the same sums every time
        return 0;
    } catch (...) {
        return 1;
    }
}

template <class T> int64_t tape_size(const int64_t *arg) {
    const int64_t np = (arg[UNITS] + kPanel<T> - 1) / kPanel<T> * kPanel<T>;
    const int64_t blocks = (arg[BATCH] + arg[ROWS] - 1) / arg[ROWS];
    const int64_t chunks = (arg[STEPS] + arg[CHUNK] - 1) / arg[CHUNK];
    return blocks * chunks * (2 + (arg[W_R] ? 5 : 4) * arg[CHUNK]) * arg[ROWS] * np;
}

}  // namespace

extern "C" {
int organics_arguments(void) { return ARGUMENTS; }
int64_t organics_tape_f32(const int64_t *arg) { return tape_size<float>(arg); }
int64_t organics_tape_f64(const int64_t *arg) { return tape_size<double>(arg); }
int organics_forward_f32(const int64_t *arg) { return forward<float>(arg, InThreads{}); }
int organics_forward_f64(const int64_t *arg) { return forward<double>(arg, InThreads{}); }
int organics_backward_f32(const int64_t *arg) { return backward<float>(arg, InThreads{}); }
int organics_backward_f64(const int64_t *arg) { return backward<double>(arg, InThreads{}); }
void *organics_stream_open_f32(const int64_t *arg) { return open_stream<float>(arg); }
void organics_stream_step_f32(const void *stream) { static_cast<const Stream<float> *>(stream)->step(); }
void organics_stream_close_f32(void *stream) { delete static_cast<Stream<float> *>(stream); }
void *organics_stream_open_f64(const int64_t *arg) { return open_stream<double>(arg); }
void organics_stream_step_f64(const void *stream) { static_cast<const Stream<double> *>(stream)->step(); }
void organics_stream_close_f64(void *stream) { delete static_cast<Stream<double> *>(stream); }
}
