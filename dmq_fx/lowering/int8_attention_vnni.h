// Attention over integers by dot products of bytes (AVX-512 VNNI).
#pragma once

#include <numeric>

#include "int8_attention.h"

#if defined(DMQ_AVX512) && defined(__AVX512VNNI__)
#define DMQ_VNNI 1

namespace {

// Bytes of keys and values are packed less 128, as vpdpbusd multiplies unsigned bytes by signed ones. A panel is a few
// tiles of 16 columns (keys, or elements of a value), [steps][tiles][16][4]; what is padded is zero.
struct Vnni {
    static constexpr int KEY_ROWS = 4, KEY_TILES = 4, VALUE_ROWS = 8, VALUE_TILES = 3;

    struct Packed {
        int64_t key_steps, key_tiles, value_steps, value_tiles;
        int8_t *keys, *values;
        int32_t *key_start, *value_start;  // what sums start from: the part of the zero points

        Packed(const Attention& a, Memory& memory) {
            key_steps = ceil_div(a.width, 4), key_tiles = ceil_div(a.keys, 16);
            value_steps = ceil_div(a.keys, 4), value_tiles = ceil_div(a.value_width, 16);
            keys = memory.take<int8_t>(key_tiles * key_steps * 64);
            values = memory.take<int8_t>(value_tiles * value_steps * 64);
            key_start = memory.take<int32_t>(key_tiles * 16);
            value_start = memory.take<int32_t>(value_tiles * 16);
        }
    };

    struct Work {
        int64_t query_stride, score_stride, integer_stride;
        uint8_t *queries, *integers;
        int32_t* scores;
        float* shares;

        Work(const Attention& a, Memory& memory) {
            const int64_t keys = ceil_div(a.keys, LANES) * LANES;
            query_stride = ceil_div(a.width, 4) * 4;
            score_stride = keys + 16, integer_stride = keys + 64;  // no powers of two: rows would share a cache's sets
            queries = memory.take<uint8_t>(BLOCK * query_stride);
            integers = memory.take<uint8_t>(BLOCK * integer_stride);
            scores = memory.take<int32_t>(BLOCK * score_stride);
            shares = memory.take<float>(keys);
        }
    };

    static INLINE __m512i columns_of(const int8_t* panel, int64_t steps, int64_t step_bytes) {
        __m512i sum = _mm512_setzero_si512();
        for (int64_t i = 0; i < steps; ++i)
            sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), _mm512_loadu_si512(panel + i * step_bytes));
        return sum;
    }

    // From sums of (column - 128) over `count` rows, or rather what -zero_point (column - own_zero_point) sums up to.
    static INLINE void store_start(int32_t* start, __m512i sum, int64_t count, int32_t zero_point, int32_t own) {
        sum = _mm512_add_epi32(sum, _mm512_set1_epi32(static_cast<int32_t>((128 - own) * count)));
        _mm512_storeu_si512(start, _mm512_mullo_epi32(sum, _mm512_set1_epi32(-zero_point)));
    }

    // Four bytes less 128, zero where fewer are left.
    static INLINE void store_four(int8_t* found, const uint8_t* bytes, int64_t left) {
        uint32_t four = 0x80808080u;
        if (left >= 4)
            std::memcpy(&four, bytes, 4);
        else
            for (int64_t i = 0; i < left; ++i) std::memcpy(reinterpret_cast<char*>(&four) + i, bytes + i, 1);
        four ^= 0x80808080u;
        std::memcpy(found, &four, 4);
    }

    static void pack_keys(const Call& call, const Packed& packed, int64_t batch, int64_t head) {
        const Attention& a = call.a;
        for (int64_t tile = 0; tile < packed.key_tiles; ++tile) {
            const int64_t first = tile / KEY_TILES * KEY_TILES;
            const int64_t step_bytes = std::min<int64_t>(KEY_TILES, packed.key_tiles - first) * 64;
            int8_t* panel = packed.keys + first * packed.key_steps * 64 + (tile - first) * 64;
            for (int64_t i = 0; i < 16; ++i) {
                const int64_t m = tile * 16 + i;
                const uint8_t* key = row_of(a.key, a.key_stride, batch, head, std::min(m, a.keys - 1));
                const int64_t width = m < a.keys ? a.width : 0;
                int8_t* found = panel + i * 4;
                for (int64_t step = 0; step < packed.key_steps; ++step, found += step_bytes)
                    store_four(found, key + step * 4, width - step * 4);
            }
            const __m512i sum = columns_of(panel, packed.key_steps, step_bytes);
            store_start(packed.key_start + tile * 16, sum, a.width, a.zero_points[0], a.zero_points[1]);
        }
        std::fill(packed.key_start + a.keys, packed.key_start + packed.key_tiles * 16, LEAST);
    }

    static void pack_values(const Call& call, const Packed& packed, int64_t batch, int64_t head) {
        const Attention& a = call.a;
        for (int64_t tile = 0; tile < packed.value_tiles; ++tile) {
            const int64_t first = tile / VALUE_TILES * VALUE_TILES, e = tile * 16;
            const int64_t step_bytes = std::min<int64_t>(VALUE_TILES, packed.value_tiles - first) * 64;
            const __mmask16 there = (1u << std::min<int64_t>(16, a.value_width - e)) - 1;
            int8_t* panel = packed.values + first * packed.value_steps * 64 + (tile - first) * 64;
            for (int64_t step = 0; step < packed.value_steps; ++step) {
                __m128i rows[4];
                for (int64_t i = 0; i < 4; ++i) {
                    const int64_t m = std::min(step * 4 + i, a.keys - 1);
                    const __mmask16 mask = step * 4 + i < a.keys ? there : 0;
                    const __m128i row = _mm_maskz_loadu_epi8(
                        mask, row_of(a.value, a.value_stride, batch, head, m) + e);
                    rows[i] = _mm_maskz_sub_epi8(mask, row, _mm_set1_epi8(-128));
                }
                const __m128i even = _mm_unpacklo_epi8(rows[0], rows[1]), odd = _mm_unpackhi_epi8(rows[0], rows[1]);
                const __m128i even2 = _mm_unpacklo_epi8(rows[2], rows[3]), odd2 = _mm_unpackhi_epi8(rows[2], rows[3]);
                __m128i* found = reinterpret_cast<__m128i*>(panel + step * step_bytes);
                _mm_storeu_si128(found, _mm_unpacklo_epi16(even, even2));
                _mm_storeu_si128(found + 1, _mm_unpackhi_epi16(even, even2));
                _mm_storeu_si128(found + 2, _mm_unpacklo_epi16(odd, odd2));
                _mm_storeu_si128(found + 3, _mm_unpackhi_epi16(odd, odd2));
            }
            const __m512i sum = columns_of(panel, packed.value_steps, step_bytes);
            store_start(packed.value_start + e, sum, a.keys, a.zero_points[2], a.zero_points[3]);
        }
    }

    // R rows of unsigned bytes times a panel of C tiles.
    template <int R, int C>
    static INLINE void multiply(const uint8_t* rows, int64_t stride, const int8_t* panel, int64_t steps,
                                const int32_t* start, __m512i (&sums)[R][C]) {
        repeat<C>([&](auto c) LAMBDA {
            const __m512i first = _mm512_loadu_si512(start + 16 * c);
            repeat<R>([&](auto r) LAMBDA { sums[r][c] = first; });
        });
        for (int64_t step = 0; step < steps; ++step) {
            __m512i columns[C];
            repeat<C>([&](auto c) LAMBDA { columns[c] = _mm512_loadu_si512(panel + (step * C + c) * 64); });
            repeat<R>([&](auto r) LAMBDA {
                int32_t four;
                std::memcpy(&four, rows + r * stride + step * 4, 4);
                const __m512i row = _mm512_set1_epi32(four);
                repeat<C>([&](auto c) LAMBDA { sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], row, columns[c]); });
            });
        }
        // gcc would keep each sum twice, as 32-bit and as 64-bit integers, and run out of registers.
        repeat<R>([&](auto r) LAMBDA { repeat<C>([&](auto c) LAMBDA { asm("" : "+v"(sums[r][c])); }); });
    }

    template <int C>
    static void scores_of(const Packed& packed, const Work& work, int64_t count, int64_t tile, __m512i* most) {
        const int8_t* panel = packed.keys + tile * packed.key_steps * 64;
        for (int64_t first = 0; first < count; first += KEY_ROWS) {
            __m512i sums[KEY_ROWS][C];
            multiply<KEY_ROWS, C>(work.queries + first * work.query_stride, work.query_stride, panel,
                                  packed.key_steps, packed.key_start + tile * 16, sums);
            repeat<KEY_ROWS>([&](auto r) LAMBDA {
                int32_t* found = work.scores + (first + r) * work.score_stride + tile * 16;
                __m512i largest = most[first + r];
                repeat<C>([&](auto c) LAMBDA {
                    _mm512_storeu_si512(found + 16 * c, sums[r][c]);
                    largest = _mm512_max_epi32(largest, sums[r][c]);
                });
                most[first + r] = largest;
            });
        }
    }

    static INLINE __m512 exponential(__m512i score, __m512i largest, __m512 factor) {
        const __m512 power = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(score, largest)), factor);
        const __m512 rest = _mm512_reduce_ps(power, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
        __m512 found = _mm512_set1_ps(COEFFICIENTS[4]);
        for (int i = 3; i >= 0; --i) found = _mm512_fmadd_ps(found, rest, _mm512_set1_ps(COEFFICIENTS[i]));
        return _mm512_scalef_ps(_mm512_fmadd_ps(found, rest, _mm512_set1_ps(1.f)), power);
    }

    // Exponentials of a row's scores, less the largest one, in `shares`; their sum.
    static float exponentials(const int32_t* scores, int32_t largest, float factor, int64_t keys, float* shares) {
        const __m512i most = _mm512_set1_epi32(largest);
        const __m512 by = _mm512_set1_ps(factor);
        __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
        int64_t m = 0;
        for (; m + LANES <= keys; m += LANES) {
            repeat<4>([&](auto i) LAMBDA {
                const __m512 share = exponential(_mm512_loadu_si512(scores + m + 16 * i), most, by);
                _mm512_storeu_ps(shares + m + 16 * i, share);
                sums[i] = _mm512_add_ps(sums[i], share);
            });
        }
        std::fill(shares + m, shares + ceil_div(keys, LANES) * LANES, 0.f);  // what was there may be slow to multiply
        for (int i = 0; m < keys; ++i, m += 16) {
            const __mmask16 there = (1u << std::min<int64_t>(16, keys - m)) - 1;
            const __m512i some = _mm512_maskz_loadu_epi32(there, scores + m);
            const __m512 share = _mm512_maskz_mov_ps(there, exponential(some, most, by));
            _mm512_storeu_ps(shares + m, share);
            sums[i] = _mm512_add_ps(sums[i], share);
        }
        float lanes[LANES];
        for (int i = 0; i < 4; ++i) _mm512_storeu_ps(lanes + 16 * i, sums[i]);
        return sum_of(lanes);
    }

    // Integers of a row of shares that are yet to be multiplied by `by`; their sum.
    static int32_t integers_of(const Call& call, float* shares, float by, uint8_t* integers) {
        const Attention& a = call.a;
        if (!(by < MOST))
            for (int64_t m = 0; m < a.keys; ++m) shares[m] = std::min(shares[m], MOST / by);
        const __m512 factor = _mm512_set1_ps(by);
        const __m512i zero_point = _mm512_set1_epi16(static_cast<int16_t>(a.zero_points[2]));
        const __m512i smallest = _mm512_set1_epi8(static_cast<char>(a.smallest));
        const __m512i largest = _mm512_set1_epi8(static_cast<char>(a.largest));
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        __m512i sum = _mm512_setzero_si512();
        for (int64_t m = 0; m < a.keys; m += LANES) {
            __m512i four[4];
            repeat<4>([&](auto i) LAMBDA {
                four[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(shares + m + 16 * i), factor));
            });
            const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(four[0], four[1]), zero_point);
            const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(four[2], four[3]), zero_point);
            __m512i row = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
            row = _mm512_min_epu8(_mm512_max_epu8(row, smallest), largest);
            if (a.keys - m < LANES) row = _mm512_maskz_mov_epi8((1ull << (a.keys - m)) - 1, row);
            _mm512_storeu_si512(integers + m, row);
            sum = _mm512_dpbusd_epi32(sum, row, _mm512_set1_epi8(1));
        }
        return _mm512_reduce_add_epi32(sum);
    }

    template <int C>
    static void outputs_of(const Call& call, const Packed& packed, const Work& work, const int32_t* row_parts,
                           const Rows& rows, int64_t tile) {
        const int8_t* panel = packed.values + tile * packed.value_steps * 64;
        for (int64_t first = 0; first < rows.count; first += VALUE_ROWS) {
            __m512i sums[VALUE_ROWS][C];
            multiply<VALUE_ROWS, C>(work.integers + first * work.integer_stride, work.integer_stride, panel,
                                    packed.value_steps, packed.value_start + tile * 16, sums);
            repeat<VALUE_ROWS>([&](auto r) LAMBDA {
                if (first + r >= rows.count) return;
                float* found = call.output(rows, first + r) + tile * 16;
                const __m512i row_part = _mm512_set1_epi32(row_parts[first + r]);
                repeat<C>([&](auto c) LAMBDA {
                    const int64_t left = std::min<int64_t>(16, call.a.value_width - (tile + c) * 16);
                    const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(sums[r][c], row_part));
                    const __m512 scaled = _mm512_mul_ps(sum, _mm512_set1_ps(call.result_scale));
                    _mm512_mask_storeu_ps(found + 16 * c, (1u << left) - 1, scaled);
                });
            });
        }
    }

    // Integers of the probabilities of rows whose scores are there; what each adds to all of its outputs.
    static void probabilities_of(const Call& call, const Work& work, const Rows& rows, const __m512i* most,
                                 int32_t* row_parts) {
        const Attention& a = call.a;
        const unsigned int control = _mm_getcsr();
        _mm_setcsr(control | 0x8000);  // exponentials that are less than the smallest normal number are 0, and not slow
        for (int64_t r = 0; r < rows.count; ++r) {
            const int32_t* scores = work.scores + r * work.score_stride;
            uint8_t* integers = work.integers + r * work.integer_stride;
            const int32_t largest = _mm512_reduce_max_epi32(most[r]);
            const float sum = exponentials(scores, largest, call.log2_factor, a.keys, work.shares);
            const int32_t of_integers = integers_of(call, work.shares, 1.f / sum * call.reciprocal, integers);
            row_parts[r] = of_integers * (128 - a.zero_points[3]);
            if (!a.scores) continue;
            const uint8_t* query = work.queries + r * work.query_stride;
            const int32_t of_query = std::accumulate(query, query + a.width, 0);
            call.keep(scores, of_query * (128 - a.zero_points[1]), integers, rows, r);
        }
        _mm_setcsr(control);
    }

    static void attend(const Call& call, const Packed& packed, const Work& work, const Rows& rows) {
        std::memset(work.queries, 0, BLOCK * work.query_stride);
        for (int64_t r = 0; r < rows.count; ++r)
            std::memcpy(work.queries + r * work.query_stride, call.query(rows, r), call.a.width);
        __m512i most[BLOCK];
        std::fill(most, most + BLOCK, _mm512_set1_epi32(INT32_MIN));
        int64_t tile = 0;
        for (; tile + KEY_TILES <= packed.key_tiles; tile += KEY_TILES)
            scores_of<KEY_TILES>(packed, work, rows.count, tile, most);
        switch (packed.key_tiles - tile) {
            case 3: scores_of<3>(packed, work, rows.count, tile, most); break;
            case 2: scores_of<2>(packed, work, rows.count, tile, most); break;
            case 1: scores_of<1>(packed, work, rows.count, tile, most);
        }
        int32_t row_parts[BLOCK];
        probabilities_of(call, work, rows, most, row_parts);
        for (tile = 0; tile + VALUE_TILES <= packed.value_tiles; tile += VALUE_TILES)
            outputs_of<VALUE_TILES>(call, packed, work, row_parts, rows, tile);
        switch (packed.value_tiles - tile) {
            case 2: outputs_of<2>(call, packed, work, row_parts, rows, tile); break;
            case 1: outputs_of<1>(call, packed, work, row_parts, rows, tile);
        }
    }
};

}  // namespace

#endif
