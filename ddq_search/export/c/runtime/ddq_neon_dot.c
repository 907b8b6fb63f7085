/* Kernels for AArch64 cores with dot product (Cortex-A55, A76). int32 lanes; no narrow accumulator. */
#include "ddq_neon_layers.h"

void ddq_neon_dot_product(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    if (layer->w_bits == 8)
        ddq_product(layer, x, y, scratch, DDQ_DOT, 1, 8, 128);
    else if (layer->w_bits == 4)
        ddq_product(layer, x, y, scratch, DDQ_DOT, 1, 4, 128);
    else
        ddq_product(layer, x, y, scratch, DDQ_DOT, 1, 2, 128);
}

/* 8-bit weights: two products per int16 lane; 4 and 2 bits: 36 and 255 taps. */
void ddq_neon_dot_depthwise(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    if (layer->w_bits == 8)
        ddq_depthwise(layer, x, y, scratch, 8);
    else if (layer->w_bits == 4)
        ddq_depthwise(layer, x, y, scratch, 4);
    else
        ddq_depthwise(layer, x, y, scratch, 2);
}

void ddq_neon_dot_linear(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    if (layer->w_bits == 8)
        ddq_linear(layer, x, y, scratch, 8, 1);
    else if (layer->w_bits == 4)
        ddq_linear(layer, x, y, scratch, 4, 1);
    else
        ddq_linear(layer, x, y, scratch, 2, 1);
}
