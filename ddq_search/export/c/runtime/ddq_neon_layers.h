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

/* Sums of four positions x 16 channels over `taps` taps; `at` holds their offsets in the band. */
DDQ_INLINE void ddq_depthwise_wide(int32x4_t sum[][4], const int8_t *x, uint32_t apart, const uint32_t *at,
                                   const int8_t *w, uint32_t channels, int taps) {
    DDQ_UNROLL for (int p = 0; p < 4; p++)
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            sum[p][c] = vdupq_n_s32(0);
    DDQ_KEEP for (; taps > 0; taps -= 2, at += 2, w += 2 * channels) {
        const int8_t *u = x + at[0], *v = taps > 1 ? x + at[1] : u;
        const int8x16_t a = vld1q_s8(w), b = taps > 1 ? vld1q_s8(w + channels) : vdupq_n_s8(0);
        DDQ_FENCE;
        DDQ_UNROLL for (int p = 0; p < 4; p++, u += apart, v += apart) {
            const int8x16_t d = vld1q_s8(u), e = vld1q_s8(v);
            const int16x8_t low = vmlal_s8(vmull_s8(vget_low_s8(d), vget_low_s8(a)), vget_low_s8(e), vget_low_s8(b));
            const int16x8_t high = vmlal_high_s8(vmull_high_s8(d, a), e, b);
            sum[p][0] = vaddw_s16(sum[p][0], vget_low_s16(low));
            sum[p][1] = vaddw_high_s16(sum[p][1], low);
            sum[p][2] = vaddw_s16(sum[p][2], vget_low_s16(high));
            sum[p][3] = vaddw_high_s16(sum[p][3], high);
        }
    }
}

DDQ_INLINE void ddq_depthwise_half(int32x4_t sum[][4], const int8_t *x, uint32_t apart, const uint32_t *at,
                                   const int8_t *w, uint32_t channels, int taps, int block) {
    DDQ_UNROLL for (int p = 0; p < 4; p++)
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            sum[p][c] = vdupq_n_s32(0);
    DDQ_KEEP do {
        int16x8_t acc[4][2];
        int left = taps < block ? taps : block;
        taps -= left;
        DDQ_UNROLL for (int p = 0; p < 4; p++)
            acc[p][0] = acc[p][1] = vdupq_n_s16(0);
        DDQ_KEEP for (; left; left--, at++, w += channels) {
            const int8_t *u = x + *at;
            const int8x16_t a = vld1q_s8(w);
            DDQ_FENCE;
            DDQ_UNROLL for (int p = 0; p < 4; p++, u += apart) {
                const int8x16_t d = vld1q_s8(u);
                acc[p][0] = vmlal_s8(acc[p][0], vget_low_s8(d), vget_low_s8(a));
                acc[p][1] = vmlal_high_s8(acc[p][1], d, a);
            }
        }
        DDQ_UNROLL for (int p = 0; p < 4; p++) {
            sum[p][0] = vaddw_s16(sum[p][0], vget_low_s16(acc[p][0]));
            sum[p][1] = vaddw_high_s16(sum[p][1], acc[p][0]);
            sum[p][2] = vaddw_s16(sum[p][2], vget_low_s16(acc[p][1]));
            sum[p][3] = vaddw_high_s16(sum[p][3], acc[p][1]);
        }
    } while (taps);
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
                    ddq_depthwise_half(sum, from, apart, at, w + c, channels, (int)taps, bits == 4 ? 36 : 255);
                DDQ_UNROLL for (uint32_t q = 0; q < 4; q++) {
                    uint8x16_t code;
                    DDQ_UNROLL for (int i = 0; i < 4; i++)
                        sum[q][i] = range.rounding == DDQ_DOUBLE ? ddq_scale(sum[q][i], &scales[i], DDQ_DOUBLE)
                                                                 : ddq_scale(sum[q][i], &scales[i], DDQ_SINGLE);
                    code = ddq_codes(sum[q][0], sum[q][1], sum[q][2], sum[q][3], &range);
                    if (p + q < count && channels >= 16) {
                        vst1q_u8(to + q * channels, code);
                    } else if (p + q < count) {
                        uint8_t few[16];
                        vst1q_u8(few, code);
                        DDQ_KEEP for (uint32_t i = 0; i < channels; i++)
                            to[q * channels + i] = few[i];
                    }
                }
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

/* Sums of four rows of `bytes` bytes of weights; nothing from `last` on is read. */
DDQ_INLINE int32x4_t ddq_linear_rows(const int8_t *x, const uint8_t *const *from, const uint8_t *last, uint32_t bytes,
                                     int bits, int dot) {
    const int each = 8 / bits, block = bits == 4 ? 18 : 63; /* int16 lanes take two products per plane, two sets */
    int32x4_t acc[4];
    int8x16_t plane[4];
    uint32_t at = 0;
    int chunks = (int)(bytes / 16);
    DDQ_UNROLL for (int c = 0; c < 4; c++)
        acc[c] = vdupq_n_s32(0);
    if (dot || bits == 8) {
        DDQ_KEEP for (; chunks; chunks--, at += 16, x += 16 * each) {
            DDQ_FENCE;
            DDQ_UNROLL for (int c = 0; c < 4; c++) {
                ddq_planes(plane, vld1q_s8((const int8_t *)from[c] + at), bits);
                DDQ_UNROLL for (int i = 0; i < each; i++)
                    acc[c] = ddq_dot(acc[c], plane[i], vld1q_s8(x + 16 * i));
            }
        }
    } else {
      DDQ_KEEP while (chunks) {
        int16x8_t even[4], odd[4];
        int left = chunks < block ? chunks : block;
        chunks -= left;
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            even[c] = odd[c] = vdupq_n_s16(0);
        DDQ_KEEP for (; left; left--, at += 16, x += 16 * each) {
            DDQ_FENCE;
            DDQ_UNROLL for (int c = 0; c < 4; c++) {
                ddq_planes(plane, vld1q_s8((const int8_t *)from[c] + at), bits);
                DDQ_UNROLL for (int i = 0; i < each; i += 2) {
                    const int8x16_t u = vld1q_s8(x + 16 * i), v = vld1q_s8(x + 16 * i + 16);
                    even[c] = vmlal_s8(even[c], vget_low_s8(plane[i]), vget_low_s8(u));
                    odd[c] = vmlal_s8(odd[c], vget_low_s8(plane[i + 1]), vget_low_s8(v));
                    even[c] = vmlal_high_s8(even[c], plane[i], u);
                    odd[c] = vmlal_high_s8(odd[c], plane[i + 1], v);
                }
            }
        }
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            acc[c] = vpadalq_s16(vpadalq_s16(acc[c], even[c]), odd[c]);
      }
    }
    if (at < bytes) {
        DDQ_KEEP for (int c = 0; c < 4; c++) {
            ddq_planes(plane, ddq_load_before(from[c] + at, last), bits);
            DDQ_UNROLL for (int i = 0; i < each; i++)
                acc[c] = ddq_dot(acc[c], plane[i], vld1q_s8(x + 16 * i));
        }
    }
    return ddq_reduce_words(acc);
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
        DDQ_KEEP for (int c = 0; c < channels; c += 4) {
            const ddq_scales scales = ddq_scales_of(layer, c);
            const int valid = channels - c < 4 ? channels - c : 4;
            const uint8_t *from[4];
            int32_t sum[16] = {0};
            DDQ_UNROLL for (int i = 0; i < 4; i++)
                from[i] = layer->weights + (uint32_t)(c + (i < valid ? i : valid - 1)) * bytes;
            vst1q_s32(sum, ddq_linear_rows(line, from, last, bytes, bits, dot));
            ddq_finish(sum, &scales, &range, to + c, (uint32_t)channels, 1, valid);
        }
        if (layer->out_bits != 8)
            ddq_pack(y, pixel * (uint32_t)channels, codes, (uint32_t)channels, layer->out_bits);
    }
}

#endif
