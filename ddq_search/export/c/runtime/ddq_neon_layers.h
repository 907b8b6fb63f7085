/* Whole layers from tiles: products (convolutions of any kind with columns), depthwise, linear.
 * Nothing outside the layer's arrays is read.
 */
#ifndef DDQ_NEON_LAYERS_H
#define DDQ_NEON_LAYERS_H

#include "ddq_neon_outputs.h"
#include "ddq_neon_tiles.h"

/* A convolution. `kind`, `block` (steps), `bits` and `offset` are constants.
 * Scratch: band | line | columns | weights of four channels | codes of a panel. */
DDQ_INLINE void ddq_product(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch, int kind, int block,
                            int bits, int offset) {
    ddq_band band = ddq_band_of(layer, x, scratch, offset);
    const ddq_range range = ddq_range_of(layer);
    const uint32_t length = band.row_length, row = ddq_up16(length), channels = layer->out_c, groups = layer->groups;
    const uint32_t most = band.pixels < DDQ_PANEL ? band.pixels : DDQ_PANEL;
    const uint32_t lanes = ddq_tile_pixels(kind), product = lanes * row, pitch = groups * product;
    const int rows = (int)(channels / groups), steps = (int)(row / DDQ_STEP);
    int8_t *columns = band.line + row + 32;
    int8_t *weights = columns + (most + lanes - 1) / lanes * pitch;
    uint8_t *codes = (uint8_t *)weights + DDQ_TILE_CHANNELS * row;
    for (uint32_t first = 0; first < band.pixels; first += DDQ_PANEL) {
        const uint32_t count = band.pixels - first < DDQ_PANEL ? band.pixels - first : DDQ_PANEL;
        uint8_t *out = layer->out_bits == 8 ? y + first * channels : codes;
        ddq_columns(&band, columns, first, count, lanes);
        for (uint32_t group = 0; group < groups; group++) {
            for (int c = 0; c < rows; c += DDQ_TILE_CHANNELS) {
                const int channel = (int)group * rows + c, valid = rows - c < 4 ? rows - c : 4;
                const int8_t *tile = columns + group * product;
                const ddq_scales scales = ddq_scales_of(layer, channel);
                int32_t sums[DDQ_PANEL * DDQ_TILE_CHANNELS], *to = sums;
                ddq_weights(layer, length, channel, valid, weights, bits);
                DDQ_KEEP for (int left = (int)count; left > 0; left -= (int)lanes, tile += pitch, to += 4 * lanes)
                    ddq_tile(kind, to, tile, weights, steps, block);
                ddq_finish(sums, &scales, &range, out + channel, channels, (int)count, valid);
            }
        }
        if (layer->out_bits != 8)
            ddq_pack(y, first * channels, codes, count * channels, layer->out_bits);
    }
}

/* One tap of four positions. */
DDQ_INLINE void ddq_depthwise_load(int8x16_t *v, const int8_t *u, uint32_t apart) {
    v[0] = vld1q_s8(u);
    v[1] = vld1q_s8(u + apart);
    v[2] = vld1q_s8(u + 2 * apart);
    v[3] = vld1q_s8(u + 3 * apart);
    DDQ_LOADED(v);
}

/* Sums of four positions x 16 channels over `taps` taps, two at a time; `at` holds their offsets in the band. */
DDQ_INLINE void ddq_depthwise_wide(int32x4_t sum[][4], const int8_t *x, uint32_t apart, const uint32_t *at,
                                   const int8_t *w, uint32_t channels, int taps) {
    DDQ_UNROLL for (int p = 0; p < 4; p++)
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            sum[p][c] = vdupq_n_s32(0);
    DDQ_KEEP for (; taps > 0; taps -= 2) {
        const int8_t *u = x + at[0], *v = taps > 1 ? x + at[1] : u;
        const int8x16_t a = vld1q_s8(w), b = taps > 1 ? vld1q_s8(w + channels) : vdupq_n_s8(0);
        DDQ_UNROLL for (uint32_t p = 0; p < 4; p += 2) {
            int8x16_t d[2], e[2];
            int16x8_t low[2], high[2];
            DDQ_FENCE;
            DDQ_UNROLL for (uint32_t q = 0; q < 2; q++)
                d[q] = vld1q_s8(u + (p + q) * apart);
            DDQ_UNROLL for (uint32_t q = 0; q < 2; q++)
                e[q] = vld1q_s8(v + (p + q) * apart);
            DDQ_UNROLL for (int q = 0; q < 2; q++)
                low[q] = vmull_s8(vget_low_s8(d[q]), vget_low_s8(a));
            DDQ_UNROLL for (int q = 0; q < 2; q++)
                high[q] = vmull_high_s8(d[q], a);
            DDQ_UNROLL for (int q = 0; q < 2; q++)
                low[q] = vmlal_s8(low[q], vget_low_s8(e[q]), vget_low_s8(b));
            DDQ_UNROLL for (int q = 0; q < 2; q++)
                high[q] = vmlal_high_s8(high[q], e[q], b);
            DDQ_UNROLL for (int q = 0; q < 2; q++) {
                sum[p + (uint32_t)q][0] = vaddw_s16(sum[p + (uint32_t)q][0], vget_low_s16(low[q]));
                sum[p + (uint32_t)q][1] = vaddw_high_s16(sum[p + (uint32_t)q][1], low[q]);
            }
            DDQ_UNROLL for (int q = 0; q < 2; q++) {
                sum[p + (uint32_t)q][2] = vaddw_s16(sum[p + (uint32_t)q][2], vget_low_s16(high[q]));
                sum[p + (uint32_t)q][3] = vaddw_high_s16(sum[p + (uint32_t)q][3], high[q]);
            }
        }
        at += 2;
        w += 2 * channels;
    }
}

/* As before, in int16 lanes for at most `block` taps. */
DDQ_INLINE void ddq_depthwise_half(int32x4_t sum[][4], const int8_t *x, uint32_t apart, const uint32_t *at,
                                   const int8_t *w, uint32_t channels, int taps, int block) {
    DDQ_UNROLL for (int p = 0; p < 4; p++)
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            sum[p][c] = vdupq_n_s32(0);
    DDQ_KEEP do {
        int16x8_t low[4], high[4];
        int left = taps < block ? taps : block;
        taps -= left;
        DDQ_UNROLL for (int p = 0; p < 4; p++)
            low[p] = high[p] = vdupq_n_s16(0);
        DDQ_KEEP for (; left > 0; left -= 2) {
            const int8_t *u = x + at[0], *v = left > 1 ? x + at[1] : u;
            const int8x16_t a = vld1q_s8(w), b = left > 1 ? vld1q_s8(w + channels) : vdupq_n_s8(0);
            int8x16_t d[4], e[4];
            DDQ_FENCE;
            ddq_depthwise_load(d, u, apart);
            ddq_depthwise_load(e, v, apart);
            DDQ_UNROLL for (int p = 0; p < 4; p++)
                low[p] = vmlal_s8(low[p], vget_low_s8(d[p]), vget_low_s8(a));
            DDQ_UNROLL for (int p = 0; p < 4; p++)
                high[p] = vmlal_high_s8(high[p], d[p], a);
            DDQ_UNROLL for (int p = 0; p < 4; p++)
                low[p] = vmlal_s8(low[p], vget_low_s8(e[p]), vget_low_s8(b));
            DDQ_UNROLL for (int p = 0; p < 4; p++)
                high[p] = vmlal_high_s8(high[p], e[p], b);
            at += left > 1 ? 2 : 1;
            w += left > 1 ? 2 * channels : channels;
        }
        DDQ_UNROLL for (int p = 0; p < 4; p++) {
            sum[p][0] = vaddw_s16(sum[p][0], vget_low_s16(low[p]));
            sum[p][1] = vaddw_high_s16(sum[p][1], low[p]);
            sum[p][2] = vaddw_s16(sum[p][2], vget_low_s16(high[p]));
            sum[p][3] = vaddw_high_s16(sum[p][3], high[p]);
        }
    } while (taps);
}

/* Codes of `pixels` <= 4 positions x 16 channels, `apart` bytes from one position to the next. */
DDQ_INLINE void ddq_depthwise_finish(int32x4_t sum[][4], const ddq_scales *scales, const ddq_range *range, uint8_t *to,
                                     uint32_t apart, uint32_t pixels, int rounding) {
    uint8x16_t code[4];
    DDQ_UNROLL for (int i = 0; i < 4; i++)
        DDQ_UNROLL for (int p = 0; p < 4; p++)
            sum[p][i] = ddq_scale(sum[p][i], &scales[i], rounding);
    DDQ_UNROLL for (int p = 0; p < 4; p++)
        code[p] = ddq_codes(sum[p][0], sum[p][1], sum[p][2], sum[p][3], range);
    if (pixels >= 4 && apart >= 16) {
        DDQ_UNROLL for (uint32_t p = 0; p < 4; p++)
            vst1q_u8(to + p * apart, code[p]);
        return;
    }
    for (uint32_t p = 0; p < pixels && p < 4; p++) {
        uint8_t few[16];
        vst1q_u8(few, p == 0 ? code[0] : p == 1 ? code[1] : p == 2 ? code[2] : code[3]);
        if (apart >= 16) {
            vst1q_u8(to + p * apart, vld1q_u8(few));
            continue;
        }
        DDQ_KEEP for (uint32_t i = 0; i < apart; i++)
            to[p * apart + i] = few[i];
    }
}

/* A depthwise convolution with one output channel per input channel; weights [tap][channel] in one planar row.
 * Scratch: band | 16 and three positions more | offsets of taps | unpacked weights | codes of a row. */
DDQ_INLINE void ddq_depthwise(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch, int bits) {
    ddq_band band = ddq_band_of(layer, x, scratch, 128);
    const ddq_range range = ddq_range_of(layer);
    const uint32_t channels = layer->out_c, taps = band.row_length, apart = (uint32_t)layer->stride_w * channels;
    const uint32_t out_w = (uint32_t)band.out_w, out_h = (band.pixels + out_w - 1) / out_w;
    uint32_t *at = (uint32_t *)(void *)(band.line + ddq_up16(3 * apart) + 16);
    int8_t *weights = (int8_t *)at + ddq_up16(4 * taps);
    const int direct = bits == 8 && channels >= 16;
    uint8_t *codes = (uint8_t *)weights + (direct ? 0 : ddq_up16(taps * channels) + 16);
    const int8_t *w = direct ? (const int8_t *)layer->weights : weights;
    if (!direct)
        ddq_unpack_planes(weights, DDQ_STEP, layer->weights,
                          layer->weights + channels * ((taps * (uint32_t)bits + 7) / 8), taps * channels, bits);
    for (uint32_t row = 0; row < out_h; row++) {
        const uint32_t count = band.pixels - row * out_w < out_w ? band.pixels - row * out_w : out_w;
        uint8_t *out = layer->out_bits == 8 ? y + row * out_w * channels : codes;
        uint32_t tap = 0;
        ddq_band_advance(&band, (int)row);
        for (int i = 0; i < band.kernel_h; i++) {
            const int from = ((int)row * band.stride_h + i * band.dilation_h) % band.span;
            DDQ_KEEP for (int j = 0; j < band.kernel_w; j++)
                at[tap++] = (uint32_t)from * band.row_bytes + (uint32_t)(j * band.dilation_w) * channels;
        }
        for (uint32_t block = 0; block < channels; block += 16) {
            const uint32_t c = channels < 16 ? 0 : block + 16 <= channels ? block : channels - 16;
            const ddq_scales scales[4] = {ddq_scales_of(layer, (int)c), ddq_scales_of(layer, (int)c + 4),
                                          ddq_scales_of(layer, (int)c + 8), ddq_scales_of(layer, (int)c + 12)};
            DDQ_KEEP for (uint32_t p = 0; p < count; p += 4) {
                const int8_t *from = band.rows + p * apart + c;
                uint8_t *to = out + p * channels + c;
                int32x4_t sum[4][4];
                if (bits == 8)
                    ddq_depthwise_wide(sum, from, apart, at, w + c, channels, (int)taps);
                else
                    ddq_depthwise_half(sum, from, apart, at, w + c, channels, (int)taps, bits == 4 ? 36 : 254);
                if (range.rounding == DDQ_DOUBLE)
                    ddq_depthwise_finish(sum, scales, &range, to, channels, count - p, DDQ_DOUBLE);
                else
                    ddq_depthwise_finish(sum, scales, &range, to, channels, count - p, DDQ_SINGLE);
            }
        }
        if (layer->out_bits != 8)
            ddq_pack(y, row * out_w * channels, codes, count * channels, layer->out_bits);
    }
}

/* Codes of one position for planar rows: whole chunks in order, the last one plane by plane, each padded to 16. */
static inline void ddq_linear_input(int8_t *to, const uint8_t *x, uint32_t first, uint32_t length, int in_bits,
                                    int w_bits) {
    const uint32_t each = 8 / (uint32_t)w_bits, whole = length / (16 * each) * (16 * each), rest = length - whole;
    ddq_expand(to, x, first, whole, in_bits, 128);
    if (rest) {
        const uint32_t bytes = (rest + each - 1) / each;
        ddq_fill(to + whole, 0, 16 * each);
        DDQ_KEEP for (uint32_t i = 0; i < rest; i++)
            to[whole + i / bytes * 16 + i % bytes] = (int8_t)(ddq_get(x, first + whole + i, in_bits) - 128);
    }
}

/* One chunk of 16 bytes of four rows into int16 lanes: `even` and `odd` take two products per two planes each. */
DDQ_INLINE void ddq_linear_chunk(int16x8_t *even, int16x8_t *odd, const int8x16_t *packed, const int8_t *x, int bits) {
    int8x16_t plane[4][4];
    DDQ_UNROLL for (int c = 0; c < 4; c++)
        ddq_planes(plane[c], packed[c], bits);
    DDQ_UNROLL for (int i = 0; i < 8 / bits; i += 2) {
        const int8x16_t u = vld1q_s8(x + 16 * i), v = vld1q_s8(x + 16 * i + 16);
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            even[c] = vmlal_s8(even[c], vget_low_s8(plane[c][i]), vget_low_s8(u));
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            odd[c] = vmlal_s8(odd[c], vget_low_s8(plane[c][i + 1]), vget_low_s8(v));
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            even[c] = vmlal_high_s8(even[c], plane[c][i], u);
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            odd[c] = vmlal_high_s8(odd[c], plane[c][i + 1], v);
    }
}

/* Into int32 lanes, by dot products or pairs in int16 lanes. */
DDQ_INLINE void ddq_linear_words(int32x4_t *acc, const int8x16_t *packed, const int8_t *x, int bits) {
    int8x16_t plane[4][4];
    DDQ_UNROLL for (int c = 0; c < 4; c++)
        ddq_planes(plane[c], packed[c], bits);
    DDQ_UNROLL for (int i = 0; i < 8 / bits; i++) {
        const int8x16_t u = vld1q_s8(x + 16 * i);
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            acc[c] = ddq_dot(acc[c], plane[c][i], u);
    }
}

DDQ_INLINE void ddq_linear_load(int8x16_t *packed, const uint8_t *const *from, uint32_t at) {
    DDQ_FENCE;
    DDQ_UNROLL for (int c = 0; c < 4; c++)
        packed[c] = vld1q_s8((const int8_t *)from[c] + at);
    DDQ_LOADED(packed);
}

/* Sums of four rows of `bytes` bytes of weights; nothing from `last` on is read. */
DDQ_INLINE int32x4_t ddq_linear_rows(const int8_t *x, const uint8_t *const *from, const uint8_t *last, uint32_t bytes,
                                     int bits, int dot) {
    const int each = 8 / bits, block = bits == 4 ? 18 : 63; /* int16 lanes take two products per plane, two sets */
    int32x4_t acc[4];
    int8x16_t packed[4], more[4];
    uint32_t at = 0;
    int chunks = (int)(bytes / 16);
    DDQ_UNROLL for (int c = 0; c < 4; c++)
        acc[c] = vdupq_n_s32(0);
    if (dot || bits == 8) {
        DDQ_KEEP for (; chunks >= 2; chunks -= 2, at += 32, x += 32 * each) {
            ddq_linear_load(packed, from, at);
            ddq_linear_load(more, from, at + 16);
            ddq_linear_words(acc, packed, x, bits);
            ddq_linear_words(acc, more, x + 16 * each, bits);
        }
        if (chunks) {
            ddq_linear_load(packed, from, at);
            ddq_linear_words(acc, packed, x, bits);
            at += 16;
            x += 16 * each;
        }
    }
    DDQ_KEEP while (!dot && bits < 8 && chunks) {
        int16x8_t even[4], odd[4];
        int left = chunks < block ? chunks : block;
        chunks -= left;
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            even[c] = odd[c] = vdupq_n_s16(0);
        DDQ_KEEP for (; left; left--, at += 16, x += 16 * each) {
            ddq_linear_load(packed, from, at);
            ddq_linear_chunk(even, odd, packed, x, bits);
        }
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            acc[c] = vpadalq_s16(vpadalq_s16(acc[c], even[c]), odd[c]);
    }
    if (at < bytes) {
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            packed[c] = ddq_load_before(from[c] + at, last);
        ddq_linear_words(acc, packed, x, bits);
    }
    return ddq_reduce_words(acc);
}

/* Sixteen outputs from channel c on. */
DDQ_INLINE void ddq_linear_finish(const int32x4_t *sum, const ddq_layer *layer, const ddq_range *range, int c,
                                  uint8_t *to, int rounding) {
    int32x4_t value[4];
    uint8_t few[16];
    DDQ_UNROLL for (int i = 0; i < 4; i++) {
        const ddq_scales scales = ddq_scales_of(layer, c + 4 * i);
        value[i] = ddq_scale(sum[i], &scales, rounding);
    }
    const uint8x16_t codes = ddq_codes(value[0], value[1], value[2], value[3], range);
    if (c + 16 <= layer->out_c) {
        vst1q_u8(to + c, codes);
        return;
    }
    vst1q_u8(few, codes);
    DDQ_KEEP for (int i = 0; c + i < layer->out_c; i++)
        to[c + i] = few[i];
}

/* A linear layer: every weight is read once per position. Scratch: codes of one position | of one output. */
DDQ_INLINE void ddq_linear(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch, int bits, int dot) {
    const uint32_t length = layer->in_c, bytes = (length * (uint32_t)bits + 7) / 8;
    const uint32_t pixels = (uint32_t)layer->out_h * layer->out_w, each = 8 / (uint32_t)bits;
    const int channels = layer->out_c;
    const uint8_t *last = layer->weights + layer->out_c * bytes;
    const ddq_range range = ddq_range_of(layer);
    int8_t *line = (int8_t *)scratch;
    uint8_t *codes = scratch + ddq_up16(bytes) * each;
    for (uint32_t pixel = 0; pixel < pixels; pixel++) {
        uint8_t *to = layer->out_bits == 8 ? y + pixel * (uint32_t)channels : codes;
        ddq_linear_input(line, x, pixel * length, length, layer->in_bits, bits);
        DDQ_KEEP for (int c = 0; c < channels; c += 16) {
            int32x4_t sum[4];
            DDQ_KEEP for (int j = 0; j < 16; j += 4) {
                const uint8_t *from[4];
                DDQ_UNROLL for (int i = 0; i < 4; i++)
                    from[i] = layer->weights + (uint32_t)(c + j + i < channels ? c + j + i : channels - 1) * bytes;
                sum[j / 4] = c + j < channels ? ddq_linear_rows(line, from, last, bytes, bits, dot) : vdupq_n_s32(0);
            }
            if (range.rounding == DDQ_DOUBLE)
                ddq_linear_finish(sum, layer, &range, c, to, DDQ_DOUBLE);
            else
                ddq_linear_finish(sum, layer, &range, c, to, DDQ_SINGLE);
        }
        if (layer->out_bits != 8)
            ddq_pack(y, pixel * (uint32_t)channels, codes, (uint32_t)channels, layer->out_bits);
    }
}

#endif
