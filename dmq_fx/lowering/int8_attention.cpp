// Attention over integers whose probabilities are integers, too.
//
//   scores        S = sum_d (q - z_q)(k - z_k), exact in int32; x = S * (s_q s_k scale)
//   shares        p = exp(x - max x) / sum exp(x - max x), over all keys of a row
//   probabilities P = clamp(round(p * (1 / s_p)) + z_p, smallest, largest), halves to even
//   output        sum_m (P - z_p)(v - z_v), exact in int32, times s_p s_v
//
// Two paths give the same bits: AVX-512 with dot products of bytes (VNNI), and plain loops. The exponential of both is
// 2**n (1 + r a_1 + ... + r**5 a_5) with n + r = (S - max S) * log2(e) s_q s_k scale, off by less than 1.5e-7.

#include "int8_attention.h"

#include <atomic>
#include <cmath>
#include <new>

#include "int8_attention_vnni.h"

namespace {

int32_t dot(const int16_t* x, const int16_t* y, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += x[i] * y[i];
    return sum;
}

float power_of_two(float power) {
    const float whole = std::floor(power), rest = power - whole;
    float found = COEFFICIENTS[4];
    for (int i = 3; i >= 0; --i) found = std::fma(found, rest, COEFFICIENTS[i]);
    found = std::fma(found, rest, 1.f);
    if (whole < -126.f) return 0.f;
    int32_t bits;
    std::memcpy(&bits, &found, 4);
    bits += static_cast<int32_t>(whole) * (1 << 23);
    std::memcpy(&found, &bits, 4);
    return found;
}

// Differences from zero points in 16 bits; values are transposed.
struct Plain {
    struct Packed {
        int16_t *keys, *values;

        Packed(const Attention& a, Memory& memory) {
            keys = memory.take<int16_t>(a.keys * a.width);
            values = memory.take<int16_t>(a.keys * a.value_width);
        }
    };

    struct Work {
        int16_t *query, *differences;
        int32_t* scores;
        float* shares;
        uint8_t* integers;

        Work(const Attention& a, Memory& memory) {
            query = memory.take<int16_t>(a.width);
            differences = memory.take<int16_t>(a.keys);
            scores = memory.take<int32_t>(a.keys);
            shares = memory.take<float>(a.keys);
            integers = memory.take<uint8_t>(a.keys);
        }
    };

    static void pack_keys(const Call& call, const Packed& packed, int64_t batch, int64_t head) {
        const Attention& a = call.a;
        for (int64_t m = 0; m < a.keys; ++m) {
            const uint8_t* key = row_of(a.key, a.key_stride, batch, head, m);
            for (int64_t d = 0; d < a.width; ++d) packed.keys[m * a.width + d] = key[d] - a.zero_points[1];
        }
    }

    static void pack_values(const Call& call, const Packed& packed, int64_t batch, int64_t head) {
        const Attention& a = call.a;
        for (int64_t m = 0; m < a.keys; ++m) {
            const uint8_t* value = row_of(a.value, a.value_stride, batch, head, m);
            for (int64_t e = 0; e < a.value_width; ++e) packed.values[e * a.keys + m] = value[e] - a.zero_points[3];
        }
    }

    static void attend(const Call& call, const Packed& packed, const Work& work, const Rows& rows) {
        const Attention& a = call.a;
        for (int64_t r = 0; r < rows.count; ++r) {
            const uint8_t* query = call.query(rows, r);
            for (int64_t d = 0; d < a.width; ++d) work.query[d] = query[d] - a.zero_points[0];
            for (int64_t m = 0; m < a.keys; ++m) work.scores[m] = dot(work.query, packed.keys + m * a.width, a.width);
            probabilities_of(call, work);
            float* output = call.output(rows, r);
            for (int64_t e = 0; e < a.value_width; ++e) {
                const int32_t sum = dot(work.differences, packed.values + e * a.keys, a.keys);
                output[e] = static_cast<float>(sum) * call.result_scale;
            }
            if (a.scores) call.keep(work.scores, 0, work.integers, rows, r);
        }
    }

    static void probabilities_of(const Call& call, const Work& work) {
        const Attention& a = call.a;
        const int32_t largest = *std::max_element(work.scores, work.scores + a.keys);
        float lanes[LANES] = {};
        for (int64_t m = 0; m < a.keys; ++m) {
            work.shares[m] = power_of_two(static_cast<float>(work.scores[m] - largest) * call.log2_factor);
            lanes[m % LANES] += work.shares[m];
        }
        const float by = 1.f / sum_of(lanes) * call.reciprocal;
        for (int64_t m = 0; m < a.keys; ++m) {
            const int32_t rounded = static_cast<int32_t>(std::nearbyint(std::min(work.shares[m] * by, MOST)));
            const int32_t integer = std::min(std::max(rounded + a.zero_points[2], a.smallest), a.largest);
            work.integers[m] = static_cast<uint8_t>(integer);
            work.differences[m] = static_cast<int16_t>(integer - a.zero_points[2]);
        }
    }
};

template <class Path>
int attend(const Call& call) {
    const Attention& a = call.a;
    Memory of_head, of_thread;
    typename Path::Packed(a, of_head);
    typename Path::Work(a, of_thread);
    const int64_t heads = a.batch * a.heads, blocks = ceil_div(a.queries, BLOCK);
    const int64_t size = heads * of_head.used + a.threads * of_thread.used;
    const std::align_val_t alignment{64};
    char* memory = static_cast<char*>(operator new(size, alignment, std::nothrow));
    if (!memory) return 1;
    const auto packed_of = [&](int64_t head) {
        Memory own{memory + head * of_head.used};
        return typename Path::Packed(a, own);
    };
    std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(a.threads)
    {
        const int64_t thread = next++;  // OpenMP's number would be another library's, where two are loaded
        Memory own{memory + heads * of_head.used + thread * of_thread.used};
        const typename Path::Work work(a, own);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < heads * 2; ++i) {
            const auto pack = i % 2 ? Path::pack_values : Path::pack_keys;
            pack(call, packed_of(i / 2), i / 2 / a.heads, i / 2 % a.heads);
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < heads * blocks; ++i) {
            const int64_t head = i / blocks, first = i % blocks * BLOCK;
            const Rows rows{head / a.heads, head % a.heads, first, std::min(BLOCK, a.queries - first)};
            Path::attend(call, packed_of(head), work, rows);
        }
    }
    operator delete(memory, alignment);
    return 0;
}

}  // namespace

// 0, or 1 where there is not enough memory.
extern "C" int dmq_int8_attention(const Attention* attention) {
    const Call call(*attention);
#if defined(DMQ_VNNI)
    if (!attention->portable) return attend<Vnni>(call);
#endif
    return attend<Plain>(call);
}
