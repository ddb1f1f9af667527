// sequence.cpp for XLA: its arguments by number, its threads those of XLA's pool.

#include "sequence.cpp"

#include <condition_variable>
#include <mutex>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Numbers = ffi::Span<const int64_t>;

// work(0) .. work(threads - 1), each once. The caller works too and waits for what was begun only: a pool whose
// threads are all busy, waiting for others perhaps, holds nobody up.
struct InPool {
    mutable ffi::ThreadPool pool;

    template <class F> int operator()(int threads, const F &work) const {
        struct Job {
            const F *work;
            const int threads;
            std::atomic<int> next{0}, failed{0};
            int done = 0;
            std::mutex mutex;
            std::condition_variable all;
            Job(const F *work, int threads) : work(work), threads(threads) {}
            void take() {
                for (int i; (i = next++) < threads;) {  // whoever has no part left leaves `work` alone
                    try {
                        (*work)(i);
                    } catch (...) {
                        failed = 1;
                    }
                    const std::lock_guard<std::mutex> lock(mutex);
                    if (++done == threads) all.notify_all();
                }
            }
        };
        const auto job = std::make_shared<Job>(&work, threads);
        for (int i = 1; i < threads; ++i) pool.Schedule([job] { job->take(); });
        job->take();
        std::unique_lock<std::mutex> lock(job->mutex);
        job->all.wait(lock, [&] { return job->done == threads; });
        return job->failed;
    }
};

template <bool BACKWARD>
ffi::Error run(ffi::ThreadPool pool, ffi::RemainingArgs operands, ffi::RemainingRets results, Numbers numbers,
               Numbers places, Numbers results_places) {
    int64_t arg[ARGUMENTS] = {};
    if (numbers.size() != X || places.size() != operands.size() || results_places.size() != results.size() || !operands.size())
        return ffi::Error::InvalidArgument("the native sequence does not fit this version");
    std::copy(numbers.begin(), numbers.end(), arg);
    const auto kind = operands.get<ffi::AnyBuffer>(0)->element_type();
    if (kind != ffi::F32 && kind != ffi::F64) return ffi::Error::InvalidArgument("the native sequence takes float32 and float64");
    for (size_t i = 0; i < operands.size(); ++i) {
        const auto buffer = operands.get<ffi::AnyBuffer>(i);
        if (!buffer || buffer->element_type() != kind || places[i] < X || places[i] >= ARGUMENTS)
            return ffi::Error::InvalidArgument("the native sequence cannot take an operand");
        arg[places[i]] = reinterpret_cast<int64_t>(buffer->untyped_data());
    }
    for (size_t i = 0; i < results.size(); ++i) {
        auto result = results.get<ffi::AnyBuffer>(i);
        if (!result || (*result)->element_type() != kind || results_places[i] < X || results_places[i] >= ARGUMENTS)
            return ffi::Error::InvalidArgument("the native sequence cannot give a result");
        arg[results_places[i]] = reinterpret_cast<int64_t>((*result)->untyped_data());
        if (results_places[i] >= G_W_ZX) std::memset((*result)->untyped_data(), 0, (*result)->size_bytes());  // sums
    }
    const InPool threads{pool};
    int status;
    if constexpr (BACKWARD) status = kind == ffi::F32 ? backward<float>(arg, threads) : backward<double>(arg, threads);
    else status = kind == ffi::F32 ? forward<float>(arg, threads) : forward<double>(arg, threads);
    if (status == 1) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "the native sequence ran out of memory");
    if (status) return ffi::Error::Internal("the native sequence was given no memory for one of its arguments");
    return ffi::Error::Success();
}

}  // namespace

#define BINDING                                                                                                    \
    xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>().RemainingArgs().RemainingRets().Attr<Numbers>("numbers")      \
        .Attr<Numbers>("places").Attr<Numbers>("results")
XLA_FFI_DEFINE_HANDLER_SYMBOL(organics_xla_forward, run<false>, BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(organics_xla_backward, run<true>, BINDING);
