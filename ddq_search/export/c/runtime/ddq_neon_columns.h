/* From packed input and packed weights to the bytes that tiles multiply.
 *
 * A band holds the padded input rows that one row of outputs reads, one byte per code, the kernel's offset subtracted;
 * every input row enters it once. From the band the window of every output position of a panel is gathered into
 * columns of whole steps of 16 codes, zero after K. Weights of four channels are unpacked likewise, once per panel.
 * What lies after K in unpacked weights is arbitrary: it meets zeros.
 *
 * Layouts in scratch:  columns [tile][group][step][pixel in tile][16],  weights [step][4 channels][16].
 */
#ifndef DDQ_NEON_COLUMNS_H
#define DDQ_NEON_COLUMNS_H

#include "ddq_kernels.h"
#include "ddq_neon_vectors.h"

enum { DDQ_PANEL = 72, DDQ_STEP = 16, DDQ_TILE_CHANNELS = 4 };

/* Bytes for codes up to the next multiple of 16. */
static inline uint32_t ddq_up16(uint32_t bytes) { return (bytes + 15) & ~(uint32_t)15; }

/* The geometry that columns are gathered from; a 1 x 1 convolution of stride 1 is seen as rows of one panel each. */
typedef struct {
    const uint8_t *x;
    int8_t *rows; /* the band: `span` padded rows of `row_bytes` */
    int8_t *line; /* one window in order, where its pieces are not whole steps */
    uint32_t *starts; /* where in the band the rows of a window begin */
    uint32_t pixels, codes, row_bytes, row_length;
    int in_h, in_w, in_c, out_w, columns, kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
    int dilation_h, dilation_w, groups, bits, offset, span, next;
    int8_t zero;
} ddq_band;

static inline ddq_band ddq_band_of(const ddq_layer *layer, const uint8_t *x, uint8_t *scratch, int offset) {
    ddq_band b;
    const int plain = layer->kernel_h == 1 && layer->kernel_w == 1 && layer->stride_h == 1 && layer->stride_w == 1;
    b.x = x;
    b.pixels = (uint32_t)layer->out_h * layer->out_w;
    b.codes = (uint32_t)layer->in_h * layer->in_w * layer->in_c;
    b.row_length = (uint32_t)layer->kernel_h * layer->kernel_w * (uint32_t)(layer->in_c / layer->groups);
    b.in_h = layer->in_h;
    b.in_w = layer->in_w;
    b.in_c = layer->in_c;
    b.out_w = layer->out_w;
    b.kernel_h = layer->kernel_h;
    b.kernel_w = layer->kernel_w;
    b.stride_h = layer->stride_h;
    b.stride_w = layer->stride_w;
    b.pad_top = layer->pad_top;
    b.pad_left = layer->pad_left;
    b.dilation_h = layer->dilation_h;
    b.dilation_w = layer->dilation_w;
    b.groups = layer->groups;
    if (plain && b.pixels == (uint32_t)layer->in_h * layer->in_w && !layer->pad_top && !layer->pad_left) {
        b.in_w = b.out_w = b.pixels < DDQ_PANEL ? (int)b.pixels : DDQ_PANEL;
        b.in_h = (int)((b.pixels + (uint32_t)b.out_w - 1) / (uint32_t)b.out_w);
    }
    b.bits = layer->in_bits;
    b.offset = offset;
    b.zero = (int8_t)(layer->in_zero - offset);
    b.columns = (b.out_w - 1) * b.stride_w + (b.kernel_w - 1) * b.dilation_w + 1;
    b.span = (b.kernel_h - 1) * b.dilation_h + 1;
    b.row_bytes = ddq_up16((uint32_t)b.columns * (uint32_t)b.in_c);
    b.next = 0;
    b.rows = (int8_t *)scratch;
    b.starts = (uint32_t *)(void *)(b.rows + (uint32_t)b.span * b.row_bytes);
    b.line = (int8_t *)b.starts + ddq_up16(4 * (uint32_t)b.kernel_h);
    return b;
}

DDQ_INLINE void ddq_expand_chunk(int8_t *to, uint8x16_t packed, int bits, uint8x16_t minus) {
    uint8_t *bytes = (uint8_t *)to;
    if (bits == 8) {
        vst1q_u8(bytes, vsubq_u8(packed, minus));
    } else if (bits == 4) {
        uint8x16x2_t codes;
        codes.val[0] = vsubq_u8(vandq_u8(packed, vdupq_n_u8(15)), minus);
        codes.val[1] = vsubq_u8(vshrq_n_u8(packed, 4), minus);
        vst2q_u8(bytes, codes);
    } else {
        const uint8x16_t three = vdupq_n_u8(3);
        uint8x16x4_t codes;
        codes.val[0] = vsubq_u8(vandq_u8(packed, three), minus);
        codes.val[1] = vsubq_u8(vandq_u8(vshrq_n_u8(packed, 2), three), minus);
        codes.val[2] = vsubq_u8(vandq_u8(vshrq_n_u8(packed, 4), three), minus);
        codes.val[3] = vsubq_u8(vshrq_n_u8(packed, 6), minus);
        vst4q_u8(bytes, codes);
    }
}

/* Whole bytes, at least one chunk of 16: chunks, the last one overlapping the one before. */
DDQ_INLINE void ddq_expand_bytes(int8_t *to, const uint8_t *from, uint32_t bytes, int bits, uint8x16_t minus) {
    const uint32_t each = 8 / (uint32_t)bits;
    uint8x16_t packed[4];
    DDQ_KEEP for (; bytes >= 64; bytes -= 64, from += 64, to += 64 * each) {
        DDQ_UNROLL for (int i = 0; i < 4; i++)
            packed[i] = vld1q_u8(from + 16 * i);
        DDQ_UNROLL for (uint32_t i = 0; i < 4; i++)
            ddq_expand_chunk(to + 16 * i * each, packed[i], bits, minus);
        DDQ_POINTER(from);
        DDQ_POINTER(to);
    }
    DDQ_KEEP for (; bytes >= 16; bytes -= 16, from += 16, to += 16 * each) {
        ddq_expand_chunk(to, vld1q_u8(from), bits, minus);
        DDQ_POINTER(from);
        DDQ_POINTER(to);
    }
    if (bytes)
        ddq_expand_chunk(to - (16 - bytes) * each, vld1q_u8(from - (16 - bytes)), bits, minus);
}

/* `count` codes from code `first` of a packed tensor, minus `offset`; reads and writes nothing beyond them. */
static inline void ddq_expand(int8_t *to, const uint8_t *x, uint32_t first, uint32_t count, int bits, int offset) {
    const uint8x16_t minus = vdupq_n_u8((uint8_t)offset);
    const uint8_t *from = x + first / (8 / (uint32_t)bits);
    const uint32_t width = (uint32_t)bits;
    if (first * width % 8 == 0 && count * width % 8 == 0 && count * width >= 128) {
        if (bits == 8)
            ddq_expand_bytes(to, from, count, 8, minus);
        else if (bits == 4)
            ddq_expand_bytes(to, from, count / 2, 4, minus);
        else
            ddq_expand_bytes(to, from, count / 4, 2, minus);
        return;
    }
    DDQ_KEEP for (uint32_t i = 0; i < count; i++)
        to[i] = (int8_t)(ddq_get(x, first + i, bits) - offset);
}

static inline void ddq_fill(int8_t *to, int8_t value, uint32_t count) {
    const int8x16_t values = vdupq_n_s8(value);
    DDQ_KEEP for (; count >= 16; count -= 16, to += 16) {
        vst1q_s8(to, values);
        DDQ_FENCE;
    }
    DDQ_KEEP for (; count; count--) {
        *to++ = value;
        DDQ_FENCE;
    }
}

/* Row `row` of the padded image into its place in the band. */
static inline void ddq_band_load(const ddq_band *b, int row) {
    int8_t *to = b->rows + (uint32_t)(row % b->span) * b->row_bytes;
    const uint32_t depth = (uint32_t)b->in_c, width = (uint32_t)b->columns * depth;
    const int y = row - b->pad_top;
    if (y < 0 || y >= b->in_h) {
        ddq_fill(to, b->zero, width);
        return;
    }
    const uint32_t first = (uint32_t)y * (uint32_t)b->in_w * depth, left = (uint32_t)b->pad_left * depth;
    uint32_t inside = (uint32_t)b->in_w * depth;
    if (left >= width) {
        ddq_fill(to, b->zero, width);
        return;
    }
    inside = inside < width - left ? inside : width - left;
    inside = inside < b->codes - first ? inside : b->codes - first;
    ddq_fill(to, b->zero, left);
    ddq_expand(to + left, b->x, first, inside, b->bits, b->offset);
    ddq_fill(to + left + inside, b->zero, width - left - inside);
}

/* Brings the rows that output row `row` reads into the band. */
static inline void ddq_band_advance(ddq_band *b, int row) {
    const int top = row * b->stride_h;
    for (b->next = b->next > top ? b->next : top; b->next < top + b->span; b->next++)
        ddq_band_load(b, b->next);
}

/* Copies whole steps of 16, `apart` bytes from one to the next; may write up to 15 bytes more than `count`. */
DDQ_INLINE void ddq_copy_steps(int8_t *to, uint32_t apart, const int8_t *from, uint32_t count) {
    DDQ_KEEP for (; count >= 48; count -= 48, from += 48, to += 3 * apart) {
        const int8x16_t a = vld1q_s8(from), b = vld1q_s8(from + 16), c = vld1q_s8(from + 32);
        vst1q_s8(to, a);
        vst1q_s8(to + apart, b);
        vst1q_s8(to + 2 * apart, c);
        DDQ_POINTER(from);
        DDQ_POINTER(to);
    }
    DDQ_KEEP for (; (int32_t)count > 0; count -= 16, from += 16, to += apart) {
        vst1q_s8(to, vld1q_s8(from));
        DDQ_POINTER(from);
        DDQ_POINTER(to);
    }
}

/* Where in the band the rows of the windows of output row `row` begin. */
static inline void ddq_band_rows(const ddq_band *b, int row) {
    const uint32_t size = (uint32_t)b->span * b->row_bytes, down = (uint32_t)b->dilation_h * b->row_bytes;
    uint32_t at = (uint32_t)(row * b->stride_h % b->span) * b->row_bytes;
    for (int i = 0; i < b->kernel_h; i++) {
        b->starts[i] = at;
        at += down;
        at -= at >= size ? size : 0;
    }
}

/* Columns of output positions first … first + count - 1 for tiles of `lanes`; `whole`: one group, pieces of windows are whole steps. */
DDQ_INLINE void ddq_columns_as(ddq_band *b, int8_t *columns, uint32_t first, uint32_t count, uint32_t lanes, int whole) {
    const uint32_t apart = lanes * DDQ_STEP, length = ddq_up16(b->row_length), product = lanes * length;
    const uint32_t depth = (uint32_t)(b->in_c / b->groups), pitch = (uint32_t)(b->dilation_w * b->in_c);
    const uint32_t across = (uint32_t)(b->stride_w * b->in_c);
    const int joined = b->dilation_w == 1 && b->groups == 1, pieces = joined ? 1 : b->kernel_w;
    const int kernel_h = b->kernel_h, groups = b->groups, out_w = b->out_w;
    const uint32_t piece = joined ? (uint32_t)b->kernel_w * depth : depth;
    const uint32_t *starts = b->starts;
    int row = (int)(first / (uint32_t)out_w), left = out_w - (int)(first % (uint32_t)out_w);
    const int8_t *window = b->rows + first % (uint32_t)out_w * across;
    int8_t *tile = columns;
    ddq_band_advance(b, row);
    ddq_band_rows(b, row);
    for (uint32_t lane = 0; count; count--, left--, window += across) {
        int8_t *to = tile + lane * DDQ_STEP;
        if (left == 0) {
            left = out_w;
            window = b->rows;
            ddq_band_advance(b, ++row);
            ddq_band_rows(b, row);
        }
        if (whole) {
            DDQ_KEEP for (int i = 0; i < kernel_h; i++, to += piece * lanes)
                ddq_copy_steps(to, apart, window + starts[i], piece);
        } else {
            const int8_t *part = window;
            for (int group = 0; group < groups; group++, to += product, part += depth) {
                int8_t *end = b->line;
                for (int i = 0; i < kernel_h; i++) {
                    const int8_t *from = part + starts[i];
                    for (int j = 0; j < pieces; j++, from += pitch, end += piece)
                        ddq_copy_steps(end, DDQ_STEP, from, piece);
                }
                vst1q_s8(end, vdupq_n_s8(0));
                ddq_copy_steps(to, apart, b->line, length);
            }
        }
        if (++lane == lanes) {
            lane = 0;
            tile += (uint32_t)groups * product;
        }
    }
}

static inline void ddq_columns(ddq_band *b, int8_t *columns, uint32_t first, uint32_t count, uint32_t lanes) {
    if (b->groups == 1 && b->dilation_w == 1 && b->kernel_w * b->in_c % DDQ_STEP == 0)
        ddq_columns_as(b, columns, first, count, lanes, 1);
    else
        ddq_columns_as(b, columns, first, count, lanes, 0);
}

/* 16 bytes of packed weights as `8 / bits` planes of 16 codes. */
DDQ_INLINE void ddq_planes(int8x16_t *plane, int8x16_t packed, int bits) {
    if (bits == 8) {
        plane[0] = packed;
    } else if (bits == 4) {
        plane[0] = vshrq_n_s8(vshlq_n_s8(packed, 4), 4);
        plane[1] = vshrq_n_s8(packed, 4);
    } else {
        plane[0] = vshrq_n_s8(vshlq_n_s8(packed, 6), 6);
        plane[1] = vshrq_n_s8(vshlq_n_s8(packed, 4), 6);
        plane[2] = vshrq_n_s8(vshlq_n_s8(packed, 2), 6);
        plane[3] = vshrq_n_s8(packed, 6);
    }
}

/* 16 bytes; from `end` on zeros. */
DDQ_INLINE int8x16_t ddq_load_before(const uint8_t *from, const uint8_t *end) {
    uint8_t few[16] = {0};
    if (end - from >= 16)
        return vld1q_s8((const int8_t *)from);
    DDQ_KEEP for (int i = 0; i < end - from; i++)
        few[i] = from[i];
    return vld1q_s8((const int8_t *)few);
}

/* `length` codes in the planar layout, as bytes in steps `apart` bytes from one to the next; reads nothing from `last`
 * on, writes whole steps. */
DDQ_INLINE void ddq_unpack_planes(int8_t *to, uint32_t apart, const uint8_t *from, const uint8_t *last,
                                  uint32_t length, int bits) {
    const uint32_t each = 8 / (uint32_t)bits;
    int8x16_t plane[4];
    DDQ_KEEP for (; length >= 32 * each; length -= 32 * each, from += 32, to += 2 * each * apart) {
        int8x16_t more[4];
        ddq_planes(plane, vld1q_s8((const int8_t *)from), bits);
        ddq_planes(more, vld1q_s8((const int8_t *)from + 16), bits);
        DDQ_UNROLL for (uint32_t i = 0; i < each; i++)
            vst1q_s8(to + i * apart, plane[i]);
        DDQ_UNROLL for (uint32_t i = 0; i < each; i++)
            vst1q_s8(to + (each + i) * apart, more[i]);
        DDQ_POINTER(from);
        DDQ_POINTER(to);
    }
    if (length >= 16 * each) {
        ddq_planes(plane, vld1q_s8((const int8_t *)from), bits);
        DDQ_UNROLL for (uint32_t i = 0; i < each; i++)
            vst1q_s8(to + i * apart, plane[i]);
        length -= 16 * each;
        from += 16;
        to += each * apart;
    }
    if (length) {
        int8_t tail[80];
        const uint32_t bytes = (length + each - 1) / each;
        ddq_planes(plane, ddq_load_before(from, last), bits);
        DDQ_UNROLL for (uint32_t i = 0; i < each; i++)
            vst1q_s8(tail + i * bytes, plane[i]);
        ddq_copy_steps(to, apart, tail, length);
    }
}

/* Weights of `count` <= 4 channels from `channel`; missing ones repeat the last. */
DDQ_INLINE void ddq_weights(const ddq_layer *layer, uint32_t length, int channel, int count, int8_t *to, int bits) {
    const uint32_t bytes = (length * (uint32_t)bits + 7) / 8;
    const uint8_t *last = layer->weights + layer->out_c * bytes;
    for (int i = 0; i < DDQ_TILE_CHANNELS; i++) {
        const uint8_t *from = layer->weights + (uint32_t)(channel + (i < count ? i : count - 1)) * bytes;
        ddq_unpack_planes(to + i * DDQ_STEP, DDQ_TILE_CHANNELS * DDQ_STEP, from, last, length, bits);
    }
}

#endif
