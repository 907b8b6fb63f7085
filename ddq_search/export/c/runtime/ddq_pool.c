/* Largest and mean code of windows. A window of at most 65535 x 65535 codes would overflow: the exporter refuses sums
 * above INT32_MAX. */
#include "ddq_steps.h"

/* Part of a window along one axis that lies inside the image, and how much of it lies inside image and padding. */
typedef struct {
    int32_t first, last, counted;
} span;

static span window(int32_t start, int32_t kernel, int32_t size, int32_t pad_after) {
    span s = {start < 0 ? 0 : start, start + kernel < size ? start + kernel : size, 0};
    const int32_t end = start + kernel < size + pad_after ? start + kernel : size + pad_after;
    s.counted = end - start;
    return s;
}

void ddq_max_pool(const ddq_step *step, uint8_t *arena) {
    const ddq_pool_facts *f = step->facts;
    const uint8_t *x = arena + step->x[0];
    uint32_t index = 0;
    for (uint32_t oy = 0; oy < f->out_h; oy++) {
        const span rows = window((int32_t)(oy * f->stride_h) - f->pad_top, f->kernel_h, (int32_t)f->in_h, 0);
        for (uint32_t ox = 0; ox < f->out_w; ox++) {
            const span columns = window((int32_t)(ox * f->stride_w) - f->pad_left, f->kernel_w, (int32_t)f->in_w, 0);
            for (uint32_t c = 0; c < f->channels; c++) {
                uint8_t largest = 0;
                for (int32_t h = rows.first; h < rows.last; h++)
                    for (int32_t w = columns.first; w < columns.last; w++) {
                        const uint32_t at = ((uint32_t)h * f->in_w + (uint32_t)w) * f->channels + c;
                        const uint8_t code = ddq_get(x, at, step->in_bits[0]);
                        largest = code > largest ? code : largest;
                    }
                ddq_put(arena + step->y, index++, step->out_bits, largest);
            }
        }
    }
}

static int32_t rounded(int32_t total, int32_t count, int rounding) {
    if (rounding == DDQ_HALF_UP)
        return (total + count / 2) / count;
    const int32_t centred = total - 128 * count;
    const int32_t magnitude = ((centred < 0 ? -centred : centred) + count / 2) / count;
    return (centred < 0 ? -magnitude : magnitude) + 128;
}

void ddq_average_pool(const ddq_step *step, uint8_t *arena) {
    const ddq_pool_facts *f = step->facts;
    const uint8_t *x = arena + step->x[0];
    uint32_t index = 0;
    for (uint32_t oy = 0; oy < f->out_h; oy++) {
        const span rows =
            window((int32_t)(oy * f->stride_h) - f->pad_top, f->kernel_h, (int32_t)f->in_h, f->pad_bottom);
        for (uint32_t ox = 0; ox < f->out_w; ox++) {
            const span columns =
                window((int32_t)(ox * f->stride_w) - f->pad_left, f->kernel_w, (int32_t)f->in_w, f->pad_right);
            const int32_t inside = (rows.last - rows.first) * (columns.last - columns.first);
            const int32_t count = f->count_padding ? rows.counted * columns.counted : inside;
            for (uint32_t c = 0; c < f->channels; c++) {
                int32_t total = (count - inside) * f->zero;
                for (int32_t h = rows.first; h < rows.last; h++)
                    for (int32_t w = columns.first; w < columns.last; w++) {
                        const uint32_t at = ((uint32_t)h * f->in_w + (uint32_t)w) * f->channels + c;
                        total += ddq_get(x, at, step->in_bits[0]);
                    }
                ddq_put(arena + step->y, index++, step->out_bits, (uint8_t)rounded(total, count, f->rounding));
            }
        }
    }
}
