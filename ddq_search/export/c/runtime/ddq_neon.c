/* Kernels for AArch64 cores without dot product (Cortex-A53, A72).
 *
 * Bounds, with narrow-range weights: int16 lanes take two products per step and hold 32767, int8 lanes take one and
 * hold 127. A block is the number of steps after which lanes are added to int32.
 */
#include "ddq_neon_layers.h"

#define DDQ_PRODUCT(name, kind, block, bits, offset)                                                            \
    void name(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {                                \
        ddq_product(layer, x, y, scratch, kind, block, bits, offset);                                           \
    }

DDQ_PRODUCT(ddq_neon_w8a8, DDQ_WIDE, 1, 8, 128)   /* 2 x 127 x 128 = 32512, widened at every step */
DDQ_PRODUCT(ddq_neon_w8a4, DDQ_HALF, 16, 8, 8)    /* 32 x 127 x 8 = 32512 */
DDQ_PRODUCT(ddq_neon_w4a8, DDQ_HALF, 18, 4, 128)  /* 36 x 7 x 128 = 32256 */
DDQ_PRODUCT(ddq_neon_w4a4, DDQ_HALF, 292, 4, 8)   /* 584 x 7 x 8 = 32704 */
DDQ_PRODUCT(ddq_neon_w2a8, DDQ_HALF, 127, 2, 128) /* 254 x 1 x 128 = 32512 */
DDQ_PRODUCT(ddq_neon_w2a4, DDQ_BYTE, 15, 2, 8)    /* 15 x 1 x 8 = 120 */
DDQ_PRODUCT(ddq_neon_w2a2, DDQ_BYTE, 42, 2, 0)    /* 42 x 1 x 3 = 126 */

/* 8-bit weights: two products per int16 lane; 4 and 2 bits: 36 and 255 taps. */
void ddq_neon_depthwise(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    if (layer->w_bits == 8)
        ddq_depthwise(layer, x, y, scratch, 8);
    else if (layer->w_bits == 4)
        ddq_depthwise(layer, x, y, scratch, 4);
    else
        ddq_depthwise(layer, x, y, scratch, 2);
}

/* 8-bit weights: two products per int16 lane; 4 bits: 36; 2 bits: 252. */
void ddq_neon_linear(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    if (layer->w_bits == 8)
        ddq_linear(layer, x, y, scratch, 8, 0);
    else if (layer->w_bits == 4)
        ddq_linear(layer, x, y, scratch, 4, 0);
    else
        ddq_linear(layer, x, y, scratch, 2, 0);
}
