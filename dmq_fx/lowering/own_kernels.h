// What the kernels of dmq's own share: memory, loops that are unrolled.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define DMQ_AVX512 1
#include <immintrin.h>
#endif

#define LAMBDA __attribute__((always_inline))
#define INLINE inline LAMBDA

namespace {

constexpr int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

// Hands out aligned pieces of a piece of memory; where there is none, counts what is needed.
struct Memory {
    char* base = nullptr;
    int64_t used = 0;

    template <typename T>
    T* take(int64_t count) {
        char* found = base ? base + used : nullptr;
        used += ceil_div(count * sizeof(T), 64) * 64;
        return reinterpret_cast<T*>(found);
    }
};

#if defined(DMQ_AVX512)

template <typename F, int... I>
INLINE void repeat(F f, std::integer_sequence<int, I...>) {
    (f(std::integral_constant<int, I>{}), ...);
}

// Calls f with each of 0 to N - 1 as a constant: a loop that is unrolled before arrays are given registers.
template <int N, typename F>
INLINE void repeat(F f) {
    repeat(f, std::make_integer_sequence<int, N>{});
}

#endif

}  // namespace
