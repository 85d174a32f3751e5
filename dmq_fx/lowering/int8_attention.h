// What the paths of int8_attention.cpp share: the call, and where its rows lie.
#pragma once

#include "own_kernels.h"

// Strides are of batch, head and row, in elements; `scores` and `probabilities` may be null, both.
struct Attention {
    const uint8_t *query, *key, *value;
    float *output, *scores;
    uint8_t* probabilities;
    int64_t batch, heads, queries, keys, width, value_width;
    int64_t query_stride[3], key_stride[3], value_stride[3];
    float scales[4];         // query, key, probabilities, value
    int32_t zero_points[4];  // in the same order
    double scale;
    int32_t smallest, largest, threads, portable;
};

namespace {

constexpr int64_t LANES = 64;         // partial sums of a row's exponentials
constexpr int64_t BLOCK = 24;         // rows of queries that are computed together
constexpr int32_t LEAST = -(1 << 30);  // a score of no key, below all others; the difference of two fits in int32
constexpr float MOST = 1073741824.f;  // far beyond every integer, and an int32 can still hold it
constexpr float COEFFICIENTS[] = {0.6931512951850891f, 0.24016444385051727f, 0.05579991266131401f,
                                  0.009017031639814377f, 0.0018671297002583742f};

inline const uint8_t* row_of(const uint8_t* data, const int64_t* stride, int64_t batch, int64_t head, int64_t row) {
    return data + batch * stride[0] + head * stride[1] + row * stride[2];
}

// Rows of queries of one head.
struct Rows {
    int64_t batch, head, first, count;
};

struct Call {
    const Attention& a;
    float factor;       // from integers to x
    float log2_factor;  // from integers to powers of two
    float reciprocal;   // of the scale of probabilities
    float result_scale;

    explicit Call(const Attention& a) : a(a) {
        factor = static_cast<float>(static_cast<double>(a.scales[0]) * a.scales[1] * a.scale);
        log2_factor = static_cast<float>(factor * 1.4426950408889634);
        reciprocal = 1.f / a.scales[2];
        result_scale = a.scales[2] * a.scales[3];
    }

    const uint8_t* query(const Rows& rows, int64_t r) const {
        return row_of(a.query, a.query_stride, rows.batch, rows.head, rows.first + r);
    }

    float* output(const Rows& rows, int64_t r) const {
        return a.output + ((rows.batch * a.queries + rows.first + r) * a.heads + rows.head) * a.value_width;
    }

    // Hands out scores that are less by `missing` than they should be, and integers of probabilities.
    void keep(const int32_t* scores, int32_t missing, const uint8_t* integers, const Rows& rows, int64_t r) const {
        const int64_t start = ((rows.batch * a.heads + rows.head) * a.queries + rows.first + r) * a.keys;
        for (int64_t m = 0; m < a.keys; ++m) a.scores[start + m] = static_cast<float>(scores[m] + missing) * factor;
        std::memcpy(a.probabilities + start, integers, a.keys);
    }
};

// The sum of LANES numbers, halves upon halves.
inline float sum_of(float* lanes) {
    for (int64_t half = LANES / 2; half > 0; half /= 2)
        for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

}  // namespace
