// Sums and integers of norm_quantize.cpp by AVX-512.
#pragma once

#include <cmath>

#include "norm_quantize.h"

#if defined(DMQ_AVX512)

namespace {

// SiLU is max(y, 0) + h(|y|) with h(a) = -a / (1 + exp(a)), which is close to 0 from the last piece on. By pieces of a
// width of 1/2 around multiples of 1/2: polynomials in what a is away from them, off by less than 3.5e-7, and
// from 16 on -2.9e-6 in place of 0.
struct Pieces {
    static constexpr int COUNT = 32, POINTS = 5;
    alignas(64) float coefficients[POINTS][COUNT];

    Pieces() {
        for (int piece = 0; piece < COUNT; ++piece) {
            double points[POINTS], divided[POINTS], found[POINTS] = {};
            for (int i = 0; i < POINTS; ++i) {
                points[i] = .25 * std::cos((2 * i + 1) * 3.14159265358979323846 / (2 * POINTS));
                const double a = .5 * piece + points[i];
                divided[i] = -a / (1 + std::exp(a));
            }
            for (int order = 1; order < POINTS; ++order)  // Newton's interpolation
                for (int i = POINTS - 1; i >= order; --i)
                    divided[i] = (divided[i] - divided[i - 1]) / (points[i] - points[i - order]);
            for (int i = POINTS - 1; i >= 0; --i) {
                for (int power = POINTS - 1; power > 0; --power)
                    found[power] = found[power - 1] - points[i] * found[power];
                found[0] = divided[i] - points[i] * found[0];
            }
            for (int power = 0; power < POINTS; ++power) coefficients[power][piece] = static_cast<float>(found[power]);
        }
        coefficients[0][0] = 0.f;  // SiLU of 0, exactly
    }
};

const Pieces PIECES;

struct Avx512 {
    static constexpr int64_t CHAIN = 64;  // pixels that are added up in float32
    static constexpr int64_t SHIFT = 16;  // pixels whose mean is the shift

    static INLINE __m512 load(const float* x) { return _mm512_loadu_ps(x); }

    static INLINE __m512 load(const float* x, __mmask16 there) { return _mm512_maskz_loadu_ps(there, x); }

    static INLINE __m512 widen(__m256i x) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
    }

    static INLINE __m512 load(const Bfloat16* x) {
        return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    }

    static INLINE __m512 load(const Bfloat16* x, __mmask16 there) {
        return widen(_mm256_maskz_loadu_epi16(there, x));
    }

    static INLINE __mmask16 first(int64_t count) {
        return (1u << std::min<int64_t>(16, std::max<int64_t>(count, 0))) - 1;
    }

    // The mean of SHIFT of n pixels is at most sqrt(n / SHIFT) standard deviations away from that of all, so what is
    // taken off the sum of squares in the end is never much more than what stays.
    template <typename T, int C>
    static void sums_of(const T* x, int64_t stride, int64_t pixels, __mmask16 last, double* sums, double* squares) {
        __m512 shift[C];
        const int64_t few = std::min(SHIFT, pixels);
        const auto at = [&](int64_t p, auto c) LAMBDA {
            return c == C - 1 ? load(x + p * stride + 16 * c, last) : load(x + p * stride + 16 * c);
        };
        repeat<C>([&](auto c) LAMBDA { shift[c] = _mm512_setzero_ps(); });
        for (int64_t p = 0; p < few; ++p)
            repeat<C>([&](auto c) LAMBDA { shift[c] = _mm512_add_ps(shift[c], at(p, c)); });
        const __m512 share = _mm512_set1_ps(1.f / static_cast<float>(few));
        repeat<C>([&](auto c) LAMBDA { shift[c] = _mm512_mul_ps(shift[c], share); });
        __m512d total[C][2], total_squares[C][2];
        repeat<2 * C>([&](auto i) LAMBDA { total[i / 2][i % 2] = total_squares[i / 2][i % 2] = _mm512_setzero_pd(); });
        for (int64_t start = 0; start < pixels; start += CHAIN) {
            __m512 sum[C], square[C];
            repeat<C>([&](auto c) LAMBDA { sum[c] = square[c] = _mm512_setzero_ps(); });
            const int64_t end = std::min(start + CHAIN, pixels);
            for (int64_t p = start; p < end; ++p) {
                repeat<C>([&](auto c) LAMBDA {
                    const __m512 rest = _mm512_sub_ps(at(p, c), shift[c]);
                    sum[c] = _mm512_add_ps(sum[c], rest);
                    square[c] = _mm512_fmadd_ps(rest, rest, square[c]);
                });
            }
            repeat<C>([&](auto c) LAMBDA {
                add(total[c], sum[c]);
                add(total_squares[c], square[c]);
            });
        }
        const __m512d count = _mm512_set1_pd(static_cast<double>(pixels));
        repeat<C>([&](auto c) LAMBDA {
            __m512d base[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
            add(base, shift[c]);
            repeat<2>([&](auto half) LAMBDA {
                const __m512d sum = total[c][half], mean = _mm512_div_pd(sum, count);
                const __m512d square = _mm512_fnmadd_pd(mean, sum, total_squares[c][half]);
                const __mmask8 there = c == C - 1 ? last >> (8 * half) : 0xff;
                _mm512_mask_storeu_pd(sums + 16 * c + 8 * half, there, _mm512_fmadd_pd(base[half], count, sum));
                // The other order would make 0 of what is no number.
                const __m512d positive = _mm512_max_pd(_mm512_setzero_pd(), square);
                _mm512_mask_storeu_pd(squares + 16 * c + 8 * half, there, positive);
            });
        });
    }

    static INLINE void add(__m512d* total, __m512 x) {
        total[0] = _mm512_add_pd(total[0], _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
        total[1] = _mm512_add_pd(total[1], _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
    }

    template <typename T>
    static void sums_of(const NormQuantize& a, const Work& work, const Piece& piece) {
        const auto sum = [&](auto vectors) LAMBDA {
            constexpr int C = vectors;
            sums_of<T, C>(piece.data<T>(a), a.channels, piece.pixels, first(piece.channels - 16 * (C - 1)),
                          work.sums + piece.partial(a), work.squares + piece.partial(a));
        };
        switch (ceil_div(piece.channels, 16)) {
            case 4: sum(std::integral_constant<int, 4>{}); break;
            case 3: sum(std::integral_constant<int, 3>{}); break;
            case 2: sum(std::integral_constant<int, 2>{}); break;
            case 1: sum(std::integral_constant<int, 1>{});
        }
    }

    // Step by step for all four: one after the other, each would wait for its own results.
    static INLINE void silu(__m512 (&y)[4]) {
        constexpr int OF_SIZE = 0b1010;  // the lesser absolute value, without its sign
        const __m512 halves = _mm512_set1_ps(6291456.f);  // 3 * 2**21: what is added to it becomes a multiple of 1/2
        __m512 size[4], rest[4], found[4];
        __m512i at[4];
        repeat<4>([&](auto i) LAMBDA {
            size[i] = _mm512_range_ps(y[i], _mm512_set1_ps((PIECES.COUNT - 1) * .5f), OF_SIZE);
        });
        repeat<4>([&](auto i) LAMBDA { rest[i] = _mm512_add_ps(size[i], halves); });
        repeat<4>([&](auto i) LAMBDA { at[i] = _mm512_castps_si512(rest[i]); });
        repeat<4>([&](auto i) LAMBDA { rest[i] = _mm512_sub_ps(size[i], _mm512_sub_ps(rest[i], halves)); });
        const auto piece = [&](int power, __m512i at) LAMBDA {
            const float* row = PIECES.coefficients[power];
            return _mm512_permutex2var_ps(_mm512_load_ps(row), at, _mm512_load_ps(row + 16));
        };
        repeat<4>([&](auto i) LAMBDA { found[i] = piece(4, at[i]); });
        repeat<4>([&](auto power) LAMBDA {
            repeat<4>([&](auto i) LAMBDA { found[i] = _mm512_fmadd_ps(found[i], rest[i], piece(3 - power, at[i])); });
        });
        repeat<4>([&](auto i) LAMBDA { y[i] = _mm512_add_ps(_mm512_max_ps(y[i], _mm512_setzero_ps()), found[i]); });
    }

    template <typename T, bool SILU>
    static void integers_of(const NormQuantize& a, const Work& work, const T* x, int64_t count, uint8_t* output) {
        const __m512i zero_point = _mm512_set1_epi16(static_cast<int16_t>(a.zero_point));
        const __m512i low = _mm512_set1_epi8(static_cast<char>(a.low));
        const __m512i high = _mm512_set1_epi8(static_cast<char>(a.high));
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        const int64_t step = TILE % a.channels;
        int64_t c = 0;
        const auto integers = [&](auto loaded) LAMBDA {
            __m512 y[4];
            repeat<4>([&](auto i) LAMBDA {
                const __m512 offset = _mm512_loadu_ps(work.offsets + c + 16 * i);
                y[i] = _mm512_fmadd_ps(loaded(i), _mm512_loadu_ps(work.factors + c + 16 * i), offset);
            });
            if (SILU) silu(y);
            __m512i four[4];
            repeat<4>([&](auto i) LAMBDA {
                const __m512 level = _mm512_mul_ps(y[i], _mm512_loadu_ps(work.reciprocals + c + 16 * i));
                four[i] = _mm512_cvtps_epi32(_mm512_min_ps(level, _mm512_set1_ps(MOST)));
            });
            const __m512i one = _mm512_adds_epi16(_mm512_packs_epi32(four[0], four[1]), zero_point);
            const __m512i other = _mm512_adds_epi16(_mm512_packs_epi32(four[2], four[3]), zero_point);
            const __m512i found = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(one, other));
            return _mm512_min_epu8(_mm512_max_epu8(found, low), high);
        };
        int64_t i = 0;
        for (; i + TILE <= count; i += TILE) {
            _mm512_storeu_si512(output + i, integers([&](auto v) LAMBDA { return load(x + i + 16 * v); }));
            c += step;
            if (c >= a.channels) c -= a.channels;
        }
        if (i == count) return;
        const int64_t left = count - i;
        const __m512i last = integers([&](auto v) LAMBDA { return load(x + i + 16 * v, first(left - 16 * v)); });
        _mm512_mask_storeu_epi8(output + i, (1ull << left) - 1, last);
    }
};

}  // namespace

#endif
