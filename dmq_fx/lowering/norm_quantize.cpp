// Group norm, SiLU and quantization of images whose channels lie side by side, in two passes over the image.
//
//   statistics  sums of a block of pixels by channel, of values less a shift, in float32; what they add up to in double
//   y           x * factor + offset, by channel; y / (1 + exp(-y)) where SiLU is wanted
//   integers    clamp(round(y * reciprocal) + zero_point, low, high), halves to even
//
// Blocks are cut and added up alike whatever the number of threads. Two paths: AVX-512, and plain loops.

#include "norm_quantize.h"

#include <atomic>
#include <cmath>
#include <new>

#include "norm_quantize_avx512.h"

namespace {

constexpr float LEAST_SILU = -80.f;  // where SiLU is as good as 0, and exp(-y) still far from infinity

struct Plain {
    template <typename T>
    static void sums_of(const NormQuantize& a, const Work& work, const Piece& piece) {
        const T* x = piece.data<T>(a);
        double *sums = work.sums + piece.partial(a), *squares = work.squares + piece.partial(a);
        std::fill(sums, sums + piece.channels, 0.0);
        std::fill(squares, squares + piece.channels, 0.0);
        for (int64_t p = 0; p < piece.pixels; ++p)
            for (int64_t c = 0; c < piece.channels; ++c) sums[c] += static_cast<float>(x[p * a.channels + c]);
        for (int64_t p = 0; p < piece.pixels; ++p) {
            for (int64_t c = 0; c < piece.channels; ++c) {
                const double rest = static_cast<float>(x[p * a.channels + c]) - sums[c] / piece.pixels;
                squares[c] += rest * rest;
            }
        }
    }

    template <typename T, bool SILU>
    static void integers_of(const NormQuantize& a, const Work& work, const T* x, int64_t count, uint8_t* output) {
        for (int64_t i = 0, c = 0; i < count; ++i, c = c + 1 < a.channels ? c + 1 : 0) {
            float y = static_cast<float>(x[i]) * work.factors[c] + work.offsets[c];
            if (SILU) y = y > LEAST_SILU ? y / (1.f + std::exp(-y)) : 0.f;
            const float level = std::nearbyint(y * work.reciprocals[c]);
            const int32_t bounded = static_cast<int32_t>(level < MOST ? std::max(level, -MOST) : MOST);
            output[i] = static_cast<uint8_t>(std::min(std::max(bounded + a.zero_point, a.low), a.high));
        }
    }
};

// From sums of blocks to what is done to each channel.
void combine(const NormQuantize& a, const Work& work) {
    const int64_t channels = a.channels, pixels = a.height * a.width, group = channels / a.groups;
    std::fill(work.means, work.means + channels, 0.0);
    std::fill(work.rests, work.rests + channels, 0.0);
    for (int64_t first = 0; first < pixels; first += BLOCK) {
        const double* sums = work.sums + first / BLOCK * channels;
        for (int64_t c = 0; c < channels; ++c) work.means[c] += sums[c];
    }
    for (int64_t start = 0; start < channels; start += group) {
        double sum = 0;
        for (int64_t c = start; c < start + group; ++c) sum += work.means[c];
        std::fill(work.means + start, work.means + start + group, sum / static_cast<double>(group * pixels));
    }
    for (int64_t first = 0; first < pixels; first += BLOCK) {
        const int64_t block = first / BLOCK * channels;
        const double count = static_cast<double>(std::min(BLOCK, pixels - first));
        for (int64_t c = 0; c < channels; ++c) {
            const double apart = work.sums[block + c] / count - work.means[c];
            work.rests[c] += work.squares[block + c] + count * apart * apart;
        }
    }
    for (int64_t start = 0; start < channels; start += group) {
        double sum = 0;
        for (int64_t c = start; c < start + group; ++c) sum += work.rests[c];
        const double deviation = std::sqrt(sum / static_cast<double>(group * pixels) + a.eps);
        for (int64_t c = start; c < start + group; ++c) {
            const float factor = static_cast<float>((a.weight ? a.weight[c] : 1.f) / deviation);
            work.factors[c] = factor;
            work.offsets[c] = static_cast<float>((a.bias ? a.bias[c] : 0.f) - work.means[c] * factor);
            work.reciprocals[c] = a.reciprocal[a.by_channel ? c : 0];
        }
    }
    for (float* values : {work.factors, work.offsets, work.reciprocals})
        for (int64_t c = channels; c < channels + TILE; ++c) values[c] = values[c - channels];
}

template <class Path, typename T>
struct Sample {
    const NormQuantize& a;
    int64_t pixels = a.height * a.width;
    int64_t pieces = ceil_div(pixels, BLOCK) * ceil_div(a.channels, TILE);
    int64_t run = a.padding[1] ? a.width : RUN;
    int64_t runs = ceil_div(pixels, run);

    void sums_of(const Work& work, int64_t sample, int64_t i) const {
        const int64_t tiles = ceil_div(a.channels, TILE), first = i / tiles * BLOCK, channel = i % tiles * TILE;
        const Piece piece{sample, i / tiles, first, std::min(BLOCK, pixels - first),
                          channel, std::min(TILE, a.channels - channel)};
        Path::template sums_of<T>(a, work, piece);
        const double* squares = work.squares + piece.partial(a);
        if (!std::all_of(squares, squares + piece.channels, [](double x) { return std::isfinite(x); }))
            Plain::sums_of<T>(a, work, piece);  // squares that a float32 does not hold
    }

    // Integers of some pixels, and of the padding beside them.
    void integers_of(const Work& work, int64_t sample, int64_t i) const {
        const int64_t first = i * run, count = std::min(run, pixels - first), width = a.width + 2 * a.padding[1];
        const int64_t size = (a.height + 2 * a.padding[0]) * width * a.channels;
        const int64_t row = first / a.width + a.padding[0], column = first % a.width + a.padding[1];
        const int zero = std::min(std::max(a.zero_point, a.low), a.high);
        const T* x = static_cast<const T*>(a.x) + (sample * pixels + first) * a.channels;
        uint8_t *image = a.output + sample * size, *output = image + (row * width + column) * a.channels;
        const int64_t above = a.padding[0] * width * a.channels, beside = a.padding[1] * a.channels;
        if (i == 0) std::memset(image, zero, above);
        std::memset(output - beside, zero, beside);
        if (a.silu)
            Path::template integers_of<T, true>(a, work, x, count * a.channels, output);
        else
            Path::template integers_of<T, false>(a, work, x, count * a.channels, output);
        std::memset(output + count * a.channels, zero, beside);
        if (i == runs - 1) std::memset(image + size - above, zero, above);
    }
};

template <class Path, typename T>
int normalize(const NormQuantize& a) {
    const Sample<Path, T> one{a};
    Memory needed;
    Work(a, needed);
    // Whole samples where there are enough for all threads: what is read twice is still in a thread's own cache.
    const bool whole = a.batch % a.threads == 0 || a.batch >= 4 * a.threads;
    const std::align_val_t alignment{64};
    char* memory = static_cast<char*>(operator new(needed.used * (whole ? a.threads : 1), alignment, std::nothrow));
    if (!memory) return 1;
    std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(a.threads)
    {
        const int64_t thread = next++;  // OpenMP's number would be another library's, where two are loaded
        Memory own{memory + (whole ? thread * needed.used : 0)};
        const Work work(a, own);
        if (whole) {
#pragma omp for schedule(dynamic)
            for (int64_t sample = 0; sample < a.batch; ++sample) {
                for (int64_t i = 0; i < one.pieces; ++i) one.sums_of(work, sample, i);
                combine(a, work);
                for (int64_t i = 0; i < one.runs; ++i) one.integers_of(work, sample, i);
            }
        } else {
            for (int64_t sample = 0; sample < a.batch; ++sample) {
#pragma omp for schedule(static)
                for (int64_t i = 0; i < one.pieces; ++i) one.sums_of(work, sample, i);
#pragma omp single
                combine(a, work);
#pragma omp for schedule(static) nowait
                for (int64_t i = 0; i < one.runs; ++i) one.integers_of(work, sample, i);
            }
        }
    }
    operator delete(memory, alignment);
    return 0;
}

template <class Path>
int normalize(const NormQuantize& a) {
    return a.bfloat16 ? normalize<Path, Bfloat16>(a) : normalize<Path, float>(a);
}

}  // namespace

// 0, or 1 where there is not enough memory.
extern "C" int dmq_norm_quantize(const NormQuantize* norm_quantize) {
#if defined(DMQ_AVX512)
    if (!norm_quantize->portable) return normalize<Avx512>(*norm_quantize);
#endif
    return normalize<Plain>(*norm_quantize);
}
