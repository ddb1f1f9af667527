// The motion of circuits until they settle, and Newton's method in y and a: what organics_core.attractors.follow and
// newton_in_both do, each thread one circuit after another.
//
//     tau_y y' = -y + b z + (1 - sqrt(max(a, 0))) rec(y)
//     tau_a a' = -a + (b0 sigma)^2 + W (max(a, 0) resp(y)^2)
//
// The motion is that of the pair of Rosenbrock methods of Shampine & Reichelt, or where the core takes it, that of an
// explicit pair; with the rules for its steps that stand in the core.
// Matrices lie column by column.

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace {

enum { SETTLED, MOVING, DIVERGED, ENDLESS };

// The largest number; NaN if there is one.
template <class T, class F> T largest(int64_t n, F value) {
    T found = value(0);
    for (int64_t i = 1; i < n && found == found; i++) {
        const T one = value(i);
        if (!(one <= found)) found = one;
    }
    return found;
}

// In the order in which native_motion.py packs them.
template <class T> struct Rows {
    T *x;
    const T *tau, *base, *small, *per_most, *goal, *per_goal;
};

template <class T> struct Circuit {
    int64_t n;
    bool source, drive, response;
    const T *w_r = nullptr, *w = nullptr, *tau = nullptr, *base = nullptr;
    std::vector<T> from, pooled, recurrent, gate;

    Circuit(int64_t n, int64_t flags)
        : n(n), source(flags & 1), drive(flags & 2), response(flags & 4), from(n), pooled(n), recurrent(n), gate(n) {}

    static T positive(T value) { return value <= 0 ? T(0) : value; }

    void recurrence(const T *x) {  // W_r y, not yet rectified
        for (int64_t i = 0; i < n; i++) recurrent[i] = 0;
        for (int64_t j = 0; j < n; j++) {
            const T y = source ? positive(x[j]) : x[j];
            const T *column = w_r + j * n;
            for (int64_t i = 0; i < n; i++) recurrent[i] += column[i] * y;
        }
    }

    __attribute__((noinline)) void field(const T *x, T *out) {
        recurrence(x);
        for (int64_t i = 0; i < n; i++) {
            const T y = x[i], a = positive(x[n + i]), one = drive ? positive(recurrent[i]) : recurrent[i];
            const T sent = response ? positive(y) : y;
            out[i] = (base[i] - y + (1 - std::sqrt(a)) * one) / tau[i];
            pooled[i] = a * sent * sent;
        }
        for (int64_t i = 0; i < n; i++) out[n + i] = base[n + i] - x[n + i];
        for (int64_t j = 0; j < n; j++) {
            const T p = pooled[j], *column = w + j * n;
            for (int64_t i = 0; i < n; i++) out[n + i] += column[i] * p;
        }
        for (int64_t i = n; i < 2 * n; i++) out[i] /= tau[i];
    }

    __attribute__((noinline)) void shifted(const T *x, T shift, T scale, T *m) {  // shift I - scale J
        recurrence(x);
        for (int64_t i = 0; i < n; i++) {
            const T a = x[n + i];
            gate[i] = -scale * (1 - (a <= 0 ? T(0) : std::sqrt(a))) / tau[i];
            if (drive && !(recurrent[i] > 0)) gate[i] = 0;
            from[i] = -scale / tau[n + i];
        }
        for (int64_t j = 0; j < n; j++) {
            const T y = x[j], a = x[n + j], sent = response ? positive(y) : y;
            const T on = source && !(y > 0) ? 0 : 1, twice = 2 * positive(a) * sent, live = a > 0 ? sent * sent : 0;
            T *of_y = m + j * 2 * n, *of_a = m + (n + j) * 2 * n;
            for (int64_t i = 0; i < n; i++) {
                of_y[i] = gate[i] * w_r[j * n + i] * on;
                of_y[n + i] = from[i] * w[j * n + i] * twice;
                of_a[i] = 0;
                of_a[n + i] = from[i] * w[j * n + i] * live;
            }
            const T one = drive ? positive(recurrent[j]) : recurrent[j];
            of_y[j] += shift + scale / tau[j];
            of_a[j] = a > 0 ? scale * one * (T(0.5) / std::sqrt(a)) / tau[j] : T(0);
            of_a[n + j] += shift + scale / tau[n + j];
        }
    }
};

// What four eliminated columns, n apart, leave of a column: its first four numbers, which are what the rest is less.
template <class T> void resolve(int64_t n, const T *c, T *at, T *t) {
    t[0] = at[0];
    t[1] = at[1] -= c[1] * t[0];
    t[2] = at[2] -= c[2] * t[0] + c[n + 2] * t[1];
    t[3] = at[3] -= c[3] * t[0] + c[n + 3] * t[1] + c[2 * n + 3] * t[2];
}

// LU with partial pivoting, in place, four columns at a time from four at a time; a singular matrix leaves infinities,
// and these NaN.
template <class T> __attribute__((noinline)) void factor(int64_t n, T *m, int32_t *pivots) {
    constexpr int64_t kBlock = 4;
    for (int64_t first = 0; first < n; first += kBlock) {
        const int64_t last = first + kBlock < n ? first + kBlock : n;
        for (int64_t k = first; k < last; k++) {
            T *__restrict column = m + k * n;
            int64_t best = k;
            for (int64_t i = k + 1; i < n; i++)
                if (std::fabs(column[i]) > std::fabs(column[best])) best = i;
            pivots[k] = int32_t(best);
            if (best != k)
                for (int64_t j = 0; j < n; j++) std::swap(m[j * n + k], m[j * n + best]);
            const T inverse = 1 / column[k];
            for (int64_t i = k + 1; i < n; i++) column[i] *= inverse;
            for (int64_t j = k + 1; j < last; j++) {
                T *__restrict other = m + j * n;
                const T times = other[k];
                for (int64_t i = k + 1; i < n; i++) other[i] -= column[i] * times;
            }
        }
        if (last - first < kBlock) return;
        const T *__restrict c0 = m + first * n, *__restrict c1 = c0 + n, *__restrict c2 = c1 + n, *__restrict c3 = c2 + n;
        T t[4], u[4], v[4], w[4];
        int64_t j = last;
        for (; j + 4 <= n; j += 4) {
            T *__restrict o0 = m + j * n, *__restrict o1 = o0 + n, *__restrict o2 = o1 + n, *__restrict o3 = o2 + n;
            resolve(n, c0 + first, o0 + first, t);
            resolve(n, c0 + first, o1 + first, u);
            resolve(n, c0 + first, o2 + first, v);
            resolve(n, c0 + first, o3 + first, w);
            INDEPENDENT
            for (int64_t i = last; i < n; i++) {
                const T a = c0[i], b = c1[i], c = c2[i], d = c3[i];
                o0[i] -= a * t[0] + b * t[1] + c * t[2] + d * t[3];
                o1[i] -= a * u[0] + b * u[1] + c * u[2] + d * u[3];
                o2[i] -= a * v[0] + b * v[1] + c * v[2] + d * v[3];
                o3[i] -= a * w[0] + b * w[1] + c * w[2] + d * w[3];
            }
        }
        for (; j < n; j++) {
            T *__restrict other = m + j * n;
            resolve(n, c0 + first, other + first, t);
            for (int64_t i = last; i < n; i++) other[i] -= c0[i] * t[0] + c1[i] * t[1] + c2[i] * t[2] + c3[i] * t[3];
        }
    }
}

template <class T> __attribute__((noinline)) void solve(int64_t n, const T *m, const int32_t *pivots, T *b) {
    for (int64_t k = 0; k < n; k++) std::swap(b[k], b[pivots[k]]);
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = k + 1; i < n; i++) b[i] -= m[k * n + i] * b[k];
    for (int64_t k = n - 1; k >= 0; k--) {
        b[k] /= m[k * n + k];
        for (int64_t i = 0; i < k; i++) b[i] -= m[k * n + i] * b[k];
    }
}

// solve, of a matrix whose unknowns and equations are measured in units: pivots are then chosen among numbers alike,
// and small modulators keep their digits beside large ones.
template <class T> void factor(int64_t n, T *m, const T *units, int32_t *pivots) {
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < n; i++) m[j * n + i] = m[j * n + i] * units[j] / units[i];
    factor(n, m, pivots);
}

template <class T> void solve(int64_t n, const T *m, const T *units, const int32_t *pivots, T *b) {
    for (int64_t i = 0; i < n; i++) b[i] /= units[i];
    solve(n, m, pivots, b);
    for (int64_t i = 0; i < n; i++) b[i] *= units[i];
}

// An explicit pair whose last field is that at the end of the step: as the core lists it.
struct Pair {
    int64_t stages;
    const double *inner, *weights, *error;  // (stages, stages), (stages), (stages + 1)
};

template <class T> struct Workspace {
    std::vector<T> matrix, f, k1, k2, middle, moved, fresh, off, size, reached, v, fields;
    std::vector<int32_t> pivots;

    Workspace(int64_t size_, int64_t stages)
        : matrix(size_ * size_), f(size_), k1(size_), k2(size_), middle(size_), moved(size_), fresh(size_),
          off(size_), size(size_), reached(size_), v(size_), fields(stages * size_), pivots(size_) {}
};

// sum + h (weights_0 f + weights_1 later_1 + ...), the later ones one after another.
template <class T>
void add(int64_t all, T h, int64_t count, const double *weights, const T *f, const T *later, T *sum) {
    for (int64_t k = 0; k < count; k++) {
        const T weight = h * T(weights[k]), *field = k ? later + (k - 1) * all : f;
        if (weights[k] != 0)
            for (int64_t i = 0; i < all; i++) sum[i] += weight * field[i];
    }
}

template <class T>
int32_t follow(Circuit<T> &circuit, Workspace<T> &at, const Rows<T> &rows, const T *numbers, bool aimed, int64_t steps,
               T rtol, T still, T slow_below, T d, T e, const Pair *pair, const volatile int64_t *stop) {
    const int64_t n = circuit.n, all = 2 * n;
    const T fast = numbers[0], slow = numbers[1], shortest = numbers[2], farthest = numbers[3];
    const T infinity = std::numeric_limits<T>::infinity();
    T *x = rows.x, *moved = at.moved.data();

    auto sizes = [&](const T *state, T *out) {
        const T y = largest<T>(n, [&](int64_t i) { return std::fabs(state[i]); });
        for (int64_t i = 0; i < n; i++) out[i] = rows.small[i] + y;
        for (int64_t i = n; i < all; i++) out[i] = rows.small[i] + std::fabs(state[i]);
    };

    circuit.field(x, at.f.data());
    sizes(x, at.size.data());
    T h = T(0.1) * fast, fits = -fast, away = infinity, peak = 0, last = infinity, excess = 0;
    int64_t calm = 0, doubts = 0, pressed = 0;
    const T nearby = T(std::pow(double(std::numeric_limits<T>::epsilon()), 0.25));
    bool stiff = pair == nullptr;
    for (T &one : at.v) one = 1;
    int32_t outcome = MOVING;
    for (int64_t count = 1; count <= steps && outcome == MOVING && !*stop; count++) {
        const T *f = at.f.data();
        T *k1 = at.k1.data(), *k2 = at.k2.data(), *middle = at.middle.data(), *fresh = at.fresh.data();
        T *off = at.off.data(), *matrix = at.matrix.data();
        if (pair != nullptr) {
            T *v = at.v.data();
            const T *units = at.size.data();
            for (int64_t i = 0; i < all; i++) moved[i] = x[i] + nearby * units[i] * v[i];
            circuit.field(moved, middle);
            for (int64_t i = 0; i < all; i++) middle[i] = (middle[i] - f[i]) / (nearby * units[i]);
            T rate = largest<T>(all, [&](int64_t i) { return std::fabs(middle[i]); });
            if (rate > 0 && rate < infinity) {
                for (int64_t i = 0; i < all; i++) v[i] = middle[i] / rate;
            } else {
                rate = 1 / fast;
            }
            const T limit = T(2.5) / rate;
            const bool pressing = stiff ? h < T(0.6) * limit : h > T(0.5) * limit;
            pressed = pressing ? pressed + 1 : stiff || pressed < 1 ? 0 : pressed - 1;
            if (pressed > (stiff ? 10 : 50)) {
                stiff = !stiff;
                pressed = 0;
            }
            if (!stiff && !(h < limit)) h = limit;
        }
        if (stiff) {
            circuit.shifted(x, 1, d * h, matrix);
            const T *units = at.size.data();
            factor(all, matrix, units, at.pivots.data());
            for (int64_t i = 0; i < all; i++) k1[i] = f[i];
            solve(all, matrix, units, at.pivots.data(), k1);
            for (int64_t i = 0; i < all; i++) moved[i] = x[i] + T(0.5) * h * k1[i];
            circuit.field(moved, middle);
            for (int64_t i = 0; i < all; i++) k2[i] = middle[i] - k1[i];
            solve(all, matrix, units, at.pivots.data(), k2);
            for (int64_t i = 0; i < all; i++) {
                k2[i] += k1[i];
                moved[i] = x[i] + h * k2[i];
            }
            circuit.field(moved, fresh);
            for (int64_t i = 0; i < all; i++) off[i] = fresh[i] - e * (k2[i] - middle[i]) - 2 * (k1[i] - f[i]);
            solve(all, matrix, units, at.pivots.data(), off);
            for (int64_t i = 0; i < all; i++) off[i] += k1[i] - 2 * k2[i];
        } else {
            T *fields = at.fields.data();  // from the second on
            for (int64_t k = 1; k < pair->stages; k++) {
                for (int64_t i = 0; i < all; i++) moved[i] = x[i];
                add(all, h, k, pair->inner + k * pair->stages, f, fields, moved);
                circuit.field(moved, fields + (k - 1) * all);
            }
            for (int64_t i = 0; i < all; i++) {
                moved[i] = x[i];
                off[i] = 0;
            }
            add(all, h, pair->stages, pair->weights, f, fields, moved);
            circuit.field(moved, fresh);
            for (int64_t i = 0; i < all; i++) fields[(pair->stages - 1) * all + i] = fresh[i];
            add(all, T(6), pair->stages + 1, pair->error, f, fields, off);
        }
        sizes(moved, at.reached.data());

        const T *reached = at.reached.data();
        const T error = h * largest<T>(all, [&](int64_t i) { return std::fabs(off[i]) / reached[i]; }) / (6 * rtol);
        bool good = error <= 1;
        for (int64_t i = n; i < all; i++) good = good && moved[i] > 0;
        const T safe = error <= T(1e-3) ? T(1e-3) : error < infinity ? error : T(64);
        const bool far = excess > T(1e-5);
        T factor = (far ? T(0.75) : T(0.8)) * std::pow(safe, T(-1) / (stiff ? 3 : 5));
        if (!good) factor = far ? (factor < T(0.8) ? factor : T(0.8)) : (factor < T(0.5) ? factor : T(0.5));
        const T before = fits;
        if (good) {
            for (int64_t i = 0; i < all; i++) x[i] = moved[i];
            std::swap(at.f, at.fresh);
            std::swap(at.size, at.reached);
            fits = h * factor;
        }
        h = good && error > T(1e-3) && fits < before ? fits * fits / before : h * factor;
        if (h > farthest) h = farthest;
        const T *size = at.size.data(), *speeds = at.f.data();
        const T speed = largest<T>(all, [&](int64_t i) { return std::fabs(rows.tau[i] * speeds[i]) / size[i]; });
        bool steady = speed < still, slowly = speed < slow_below, soon = speed < T(1e-2) * still;
        if (aimed) {
            const T behind = away;
            away = largest<T>(all, [&](int64_t i) { return std::fabs(x[i] - rows.goal[i]) * rows.per_goal[i]; });
            const bool near = away < T(1e-2) && away <= behind;
            steady = steady || near;
            slowly = slowly || near;
            soon = soon || (near && calm > 0 && away <= T(0.5) * behind);
        }
        calm = good && slowly ? calm + 1 : good ? 0 : calm;
        excess = largest<T>(all, [&](int64_t i) { return size[i] * rows.per_most[i]; });
        if (speed > peak) peak = speed;
        if (soon || (calm > 3 && steady) || h > T(1e4) * slow) outcome = SETTLED;
        if (h < shortest || excess > 1) outcome = DIVERGED;
        if (count % 100 == 0) {
            doubts = peak < T(0.97) * last ? 0 : doubts + 1;
            last = peak;
            peak = 0;
        }
        if (count >= 300 && doubts > 1 && outcome == MOVING) outcome = ENDLESS;
    }
    return outcome == ENDLESS ? int32_t(MOVING) : outcome;
}

// The best state on the way, in x, and its residual.
template <class T>
T newton(Circuit<T> &circuit, Workspace<T> &at, T *x, int64_t steps, T enough) {
    const int64_t n = circuit.n, all = 2 * n;
    const T *base = circuit.base;
    T *state = at.moved.data(), *off = at.off.data(), *next = at.fresh.data(), *matrix = at.matrix.data();
    T *units = at.size.data();

    auto measured = [&]() {
        circuit.field(state, off);
        const T size = largest<T>(n, [&](int64_t i) { return std::fabs(state[i]); }) +
                       largest<T>(n, [&](int64_t i) { return std::fabs(base[i]); });
        const T y = largest<T>(n, [&](int64_t i) { return std::fabs(off[i]); }) / (size == 0 ? T(1) : size);
        const T a = largest<T>(n, [&](int64_t i) {
            return std::fabs(off[n + i] / (std::fabs(state[n + i]) + base[n + i]));
        });
        return y != y || y > a ? y : a;
    };

    for (int64_t i = 0; i < all; i++) state[i] = x[i];
    T least = measured();
    for (int64_t count = 0; count < steps && !(least <= enough); count++) {
        circuit.shifted(state, 0, -1, matrix);
        const T largest_y = largest<T>(n, [&](int64_t i) { return std::fabs(state[i]); });
        for (int64_t i = 0; i < n; i++) units[i] = largest_y > 0 ? largest_y : T(1);
        for (int64_t i = n; i < all; i++) units[i] = state[i] > 0 ? state[i] : T(1);
        factor(all, matrix, units, at.pivots.data());
        for (int64_t i = 0; i < all; i++) next[i] = off[i];
        solve(all, matrix, units, at.pivots.data(), next);
        bool sound = true;
        for (int64_t i = 0; i < n; i++) next[i] = state[i] - next[i];
        for (int64_t i = n; i < all; i++) {  // in log a: by a factor of e^3 at most
            const T change = -next[i] / state[i];
            next[i] = state[i] * std::exp(change > 3 ? T(3) : change < -3 ? T(-3) : change);
        }
        for (int64_t i = 0; i < all; i++) sound = sound && std::isfinite(next[i]) && (i < n || next[i] > 0);
        if (sound) {
            for (int64_t i = 0; i < all; i++) state[i] = next[i];
        } else {  // a step out of the domain: stay, at half the modulators
            for (int64_t i = n; i < all; i++)
                if (state[i] > T(1e-12)) state[i] *= T(0.5);
        }
        const T residual = measured();
        if (residual < least) {
            least = residual;
            for (int64_t i = 0; i < all; i++) x[i] = state[i];
        }
    }
    return least;
}

// As the fields of native_motion.Arguments.
struct Arguments {
    int64_t n, members, threads, steps, flags, aimed, rows_stride, w_r_stride, w_stride;
    const void *w_r, *w;
    void *rows, *numbers;
    int32_t *outcome;
    const Pair *pair;              // null: Rosenbrock steps alone
    const volatile int64_t *stop;  // becomes 1 when nobody waits any more
    double rtol, still, slow_below, d, e;  // d and e: of the Rosenbrock pair
};

// What one thread works with.
template <class T> struct Worker {
    Circuit<T> circuit;
    Workspace<T> workspace;

    explicit Worker(const Arguments &a) : circuit(a.n, a.flags), workspace(2 * a.n, a.pair ? a.pair->stages : 0) {}

    void member(const Arguments &a, int64_t k) {
        const int64_t all = 2 * a.n;
        T *row = static_cast<T *>(a.rows) + k * a.rows_stride;
        circuit.w_r = static_cast<const T *>(a.w_r) + k * a.w_r_stride;
        circuit.w = static_cast<const T *>(a.w) + k * a.w_stride;
        circuit.tau = row + all;
        circuit.base = row + 2 * all;
        if (a.outcome == nullptr) {
            T *residual = static_cast<T *>(a.numbers) + k;
            *residual = newton(circuit, workspace, row, a.steps, T(a.rtol));
        } else if (a.outcome[k] == MOVING) {
            Rows<T> rows{row, row + all, row + 2 * all, row + 3 * all, row + 4 * all, row + 5 * all, row + 6 * all};
            a.outcome[k] = follow(circuit, workspace, rows, static_cast<const T *>(a.numbers) + 4 * k, a.aimed != 0,
                                  a.steps, T(a.rtol), T(a.still), T(a.slow_below), T(a.d), T(a.e),
                                  a.pair, a.stop);
        }
    }
};

template <class T> void every(const Arguments &a) {
    std::atomic<int64_t> next{0};
    auto work = [&](Worker<T> &worker) {
        for (int64_t k = next++; k < a.members && !*a.stop; k = next++) worker.member(a, k);
    };
    std::vector<Worker<T>> workers(size_t(a.threads), Worker<T>(a));
    std::vector<std::thread> others;
    others.reserve(workers.size());
    try {
        for (size_t i = 1; i < workers.size(); i++) others.emplace_back(work, std::ref(workers[i]));
    } catch (const std::system_error &) {  // no more threads: those that there are do it all
    }
    work(workers[0]);
    for (std::thread &other : others) other.join();
}

template <class T> int32_t guarded(const void *a) noexcept {
    try {
        every<T>(*static_cast<const Arguments *>(a));
        return 0;
    } catch (...) {  // no memory
        return 1;
    }
}

}  // namespace

extern "C" {
int32_t organics_motion_f32(const void *a) { return guarded<float>(a); }
int32_t organics_motion_f64(const void *a) { return guarded<double>(a); }
int64_t organics_motion_arguments() { return int64_t(sizeof(Arguments)); }
}
