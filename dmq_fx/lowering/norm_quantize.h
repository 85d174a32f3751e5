// What the paths of norm_quantize.cpp share: the call, and how it is cut into pieces.
#pragma once

#include "own_kernels.h"

// Group norm of x [batch, height, width, channels], SiLU where it is wanted, zero padding, integers.
struct NormQuantize {
    const void* x;                // float32, or bfloat16
    const float *weight, *bias;   // [channels], or null
    const float* reciprocal;      // one, or [channels]
    uint8_t* output;              // [batch, height + 2 padding[0], width + 2 padding[1], channels]
    int64_t batch, height, width, channels, groups;
    int64_t padding[2];
    double eps;
    int32_t zero_point, low, high, by_channel, silu, bfloat16, threads, portable;
};

namespace {

constexpr int64_t BLOCK = 256;  // pixels whose sums are taken together, and of few of which the shift is the mean
constexpr int64_t TILE = 64;    // channels whose sums are taken together
constexpr int64_t RUN = 64;     // pixels that are quantized together where nothing lies between rows
constexpr float MOST = 1073741824.f;  // far beyond every integer, and an int32 can still hold it

// A bfloat16 as it lies in memory.
struct Bfloat16 {
    uint16_t bits;

    operator float() const {
        const uint32_t wide = static_cast<uint32_t>(bits) << 16;
        float found;
        std::memcpy(&found, &wide, 4);
        return found;
    }
};

// Of one sample: sums of blocks, [blocks][channels], and what makes integers of each channel. The latter are repeated
// for another TILE channels: who reads on at any channel finds what belongs to the channels of the next pixels.
struct Work {
    double *sums, *squares;  // squares: of differences from the mean of a block's channel
    double *means, *rests;   // by channel
    float *factors, *offsets, *reciprocals;

    Work(const NormQuantize& a, Memory& memory) {
        const int64_t blocks = ceil_div(a.height * a.width, BLOCK);
        sums = memory.take<double>(blocks * a.channels);
        squares = memory.take<double>(blocks * a.channels);
        means = memory.take<double>(a.channels);
        rests = memory.take<double>(a.channels);
        factors = memory.take<float>(a.channels + TILE);
        offsets = memory.take<float>(a.channels + TILE);
        reciprocals = memory.take<float>(a.channels + TILE);
    }
};

// Channels of some pixels that lie one behind the other.
struct Piece {
    int64_t sample, block, first, pixels, channel, channels;

    int64_t partial(const NormQuantize& a) const { return block * a.channels + channel; }

    template <typename T>
    const T* data(const NormQuantize& a) const {
        const int64_t pixel = sample * a.height * a.width + first;
        return static_cast<const T*>(a.x) + pixel * a.channels + channel;
    }
};

}  // namespace
