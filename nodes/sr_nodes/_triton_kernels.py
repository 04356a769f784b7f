"""Kernels of ``fused``, in Triton. Pictures are rows of channels: [B, H, W, C] in memory, B * H * W rows. No nodes.

Sums over rows are made in two stages, always in the same order: each group of ``span`` rows has a partial sum, and
a second kernel adds the groups up. All arithmetic is float32, whatever the tensors hold.
"""

from __future__ import annotations

# Triton reads these functions' text, and knows no annotation but constexpr.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
import triton
import triton.language as tl


@triton.jit
def partial_statistics(x, partial, rows, channels, span, R: tl.constexpr, C: tl.constexpr):
    """``partial`` [2, groups, channels]: of each group its mean, and its sum of squared deviations from that."""
    group = tl.program_id(0)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    known = channel < channels
    end = tl.minimum((group + 1) * span, rows)
    total = tl.zeros([R, C], tl.float32)
    for start in range(group * span, end, R):
        row = start + tl.arange(0, R)
        there = (row < end)[:, None] & known[None, :]
        total += tl.load(x + row[:, None] * channels + channel[None, :], there, 0.0).to(tl.float32)
    mean = tl.sum(total, 0) / (end - group * span)
    total = tl.zeros([R, C], tl.float32)
    for start in range(group * span, end, R):
        row = start + tl.arange(0, R)
        there = (row < end)[:, None] & known[None, :]
        value = tl.load(x + row[:, None] * channels + channel[None, :], there, 0.0).to(tl.float32)
        apart = tl.where(there, value - mean[None, :], 0.0)
        total += apart * apart
    tl.store(partial + group * channels + channel, mean, known)
    tl.store(partial + (tl.num_programs(0) + group) * channels + channel, tl.sum(total, 0), known)


@triton.jit
def finish_statistics(
    partial, conv_bias, running_mean, running_var, tracked, kept, rows, channels, span, groups, eps, momentum,
    CONV_BIAS: tl.constexpr, G: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """``kept`` [2, channels]: the mean, and one over the deviation; and the running statistics move.

    Groups are joined as by Chan, Golub and LeVeque (1983), so that no large sums are subtracted.
    """
    channel = tl.program_id(0) * C + tl.arange(0, C)
    known = channel < channels
    group = tl.arange(0, G)
    size = tl.minimum(tl.maximum(rows - group * span, 0), span).to(tl.float32)[:, None]
    there = (group < groups)[:, None] & known[None, :]
    at = partial + group[:, None] * channels + channel[None, :]
    means = tl.load(at, there, 0.0)
    squares = tl.load(at + groups * channels, there, 0.0)
    mean = tl.sum(means * size, 0) / rows
    apart = tl.where(there, means - mean[None, :], 0.0)
    variance = (tl.sum(squares, 0) + tl.sum(apart * apart * size, 0)) / rows
    tl.store(kept + channel, mean, known)
    tl.store(kept + channels + channel, 1.0 / tl.sqrt(variance + eps), known)
    if CONV_BIAS:
        mean += tl.load(conv_bias + channel, known, 0.0)
    old = tl.load(running_mean + channel, known, 0.0)
    tl.store(running_mean + channel, old + momentum * (mean - old), known)
    old = tl.load(running_var + channel, known, 0.0)
    tl.store(running_var + channel, old + momentum * (variance * rows / (rows - 1) - old), known)
    if tl.program_id(0) == 0:
        tl.store(tracked, tl.load(tracked) + 1)


@triton.jit
def normalise(
    x, kept, weight, bias, slope, residual, out, rows, channels, leak,
    SLOPES: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """BatchNorm of ``x`` by its own statistics, an activation, and a residual added.

    ``ACT``: 0 none, 1 ``slope`` (one, or with ``SLOPES`` one a channel) below zero, 2 ``leak`` below zero.
    """
    channel = tl.program_id(1) * C + tl.arange(0, C)
    known = channel < channels
    row = tl.program_id(0) * R + tl.arange(0, R)
    place = row[:, None] * channels + channel[None, :]
    there = (row < rows)[:, None] & known[None, :]
    value = tl.load(x + place, there, 0.0).to(tl.float32)
    mean = tl.load(kept + channel, known, 0.0)[None, :]
    scale = tl.load(kept + channels + channel, known, 0.0)[None, :]
    gamma = tl.load(weight + channel, known, 0.0)[None, :]
    value = (value - mean) * (scale * gamma) + tl.load(bias + channel, known, 0.0)[None, :]
    if ACT == 1:
        below = tl.load(slope + channel, known, 0.0)[None, :] if SLOPES else tl.load(slope)
        value = tl.where(value > 0, value, value * below)
    elif ACT == 2:
        value = tl.where(value > 0, value, value * leak)
    if RESIDUAL:
        value += tl.load(residual + place, there, 0.0).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), there)


@triton.jit
def partial_gradients(
    grad, also, total, x, kept, weight, bias, slope, partial, rows, channels, span, leak,
    ALSO: tl.constexpr, SLOPES: tl.constexpr, ACT: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """``partial`` [3, groups, channels]: of each group the sums that the gradients of BatchNorm's bias, of its weight
    and of the slope are made of. With ``ALSO`` the gradient is ``total``, of two."""
    group = tl.program_id(0)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    known = channel < channels
    mean = tl.load(kept + channel, known, 0.0)[None, :]
    scale = tl.load(kept + channels + channel, known, 0.0)[None, :]
    gamma = tl.load(weight + channel, known, 0.0)[None, :]
    beta = tl.load(bias + channel, known, 0.0)[None, :]
    if ACT == 1:
        below = tl.load(slope + channel, known, 0.0)[None, :] if SLOPES else tl.load(slope)
    of_bias = tl.zeros([R, C], tl.float32)
    of_weight = tl.zeros([R, C], tl.float32)
    of_slope = tl.zeros([R, C], tl.float32)
    end = tl.minimum((group + 1) * span, rows)
    for start in range(group * span, end, R):
        row = start + tl.arange(0, R)
        there = (row < end)[:, None] & known[None, :]
        place = row[:, None] * channels + channel[None, :]
        value = tl.load(grad + place, there, 0.0).to(tl.float32)
        if ALSO:
            both = (value + tl.load(also + place, there, 0.0).to(tl.float32)).to(total.dtype.element_ty)
            tl.store(total + place, both, there)
            value = both.to(tl.float32)
        normal = (tl.load(x + place, there, 0.0).to(tl.float32) - mean) * scale
        before = normal * gamma + beta
        if ACT == 1:
            of_slope += tl.where(before > 0, 0.0, value * before)
            value = tl.where(before > 0, value, value * below)
        elif ACT == 2:
            value = tl.where(before > 0, value, value * leak)
        of_bias += value
        of_weight += value * normal
    groups = tl.num_programs(0)
    tl.store(partial + group * channels + channel, tl.sum(of_bias, 0), known)
    tl.store(partial + (groups + group) * channels + channel, tl.sum(of_weight, 0), known)
    if ACT == 1:
        tl.store(partial + (2 * groups + group) * channels + channel, tl.sum(of_slope, 0), known)


@triton.jit
def finish_gradients(partial, sums, channels, groups, ACT: tl.constexpr, G: tl.constexpr, C: tl.constexpr):
    """``sums`` [3, channels] of ``partial`` [3, groups, channels]."""
    channel = tl.program_id(0) * C + tl.arange(0, C)
    known = channel < channels
    group = tl.arange(0, G)
    there = (group < groups)[:, None] & known[None, :]
    at = partial + group[:, None] * channels + channel[None, :]
    tl.store(sums + channel, tl.sum(tl.load(at, there, 0.0), 0), known)
    tl.store(sums + channels + channel, tl.sum(tl.load(at + groups * channels, there, 0.0), 0), known)
    if ACT == 1:
        tl.store(sums + 2 * channels + channel, tl.sum(tl.load(at + 2 * groups * channels, there, 0.0), 0), known)


@triton.jit
def through_statistics(
    grad, x, kept, weight, bias, slope, sums, out, rows, channels, leak,
    SLOPES: tl.constexpr, ACT: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The gradient of what was normalised (Ioffe and Szegedy, 2015, section 3)."""
    channel = tl.program_id(1) * C + tl.arange(0, C)
    known = channel < channels
    row = tl.program_id(0) * R + tl.arange(0, R)
    place = row[:, None] * channels + channel[None, :]
    there = (row < rows)[:, None] & known[None, :]
    value = tl.load(grad + place, there, 0.0).to(tl.float32)
    normal = tl.load(x + place, there, 0.0).to(tl.float32)
    mean = tl.load(kept + channel, known, 0.0)[None, :]
    scale = tl.load(kept + channels + channel, known, 0.0)[None, :]
    gamma = tl.load(weight + channel, known, 0.0)[None, :]
    of_bias = tl.load(sums + channel, known, 0.0)[None, :] / rows
    of_weight = tl.load(sums + channels + channel, known, 0.0)[None, :] / rows
    normal = (normal - mean) * scale
    if ACT != 0:
        before = normal * gamma + tl.load(bias + channel, known, 0.0)[None, :]
        if ACT == 1:
            below = tl.load(slope + channel, known, 0.0)[None, :] if SLOPES else tl.load(slope)
            value = tl.where(before > 0, value, value * below)
        else:
            value = tl.where(before > 0, value, value * leak)
    value = (value - of_bias - normal * of_weight) * (gamma * scale)
    tl.store(out + place, value.to(out.dtype.element_ty), there)


@triton.jit
def shuffle(x, bias, slope, out, rows, width, channels, SLOPES: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    """PixelShuffle of 2 after a bias, and PReLU: [rows, 4 * channels] of [B, H, W] to [B, 2 H, 2 W, channels]."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    inner = tl.program_id(1) * 4 * C + tl.arange(0, 4 * C)
    within = inner < 4 * channels
    value = tl.load(x + row[:, None] * (4 * channels) + inner[None, :], (row < rows)[:, None] & within[None, :], 0.0)
    value = value.to(tl.float32) + tl.load(bias + inner, within, 0.0)[None, :]
    below = tl.load(slope + inner // 4, within, 0.0)[None, :] if SLOPES else tl.load(slope)
    value = tl.where(value > 0, value, value * below).to(out.dtype.element_ty)
    left, right = tl.split(tl.reshape(value, [R, C, 2, 2]))
    upper_left, lower_left = tl.split(left)
    upper_right, lower_right = tl.split(right)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    there = (row < rows)[:, None] & (channel < channels)[None, :]
    corner = (row // width) * (4 * width) + (row % width) * 2
    place = out + corner[:, None] * channels + channel[None, :]
    below_it = 2 * width * channels
    tl.store(place, upper_left, there)
    tl.store(place + channels, upper_right, there)
    tl.store(place + below_it, lower_left, there)
    tl.store(place + below_it + channels, lower_right, there)


@triton.jit
def unshuffle(
    grad, x, bias, slope, out, of_bias, of_slope, rows, width, channels, span,
    SLOPES: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The gradient of what ``shuffle`` read; and of each group of rows the sums for the bias, [groups, 4 * channels],
    and for the slope, four a channel as well."""
    group = tl.program_id(0)
    inner = tl.program_id(1) * 4 * C + tl.arange(0, 4 * C)
    within = inner < 4 * channels
    channel = tl.program_id(1) * C + tl.arange(0, C)
    known = channel < channels
    shift = tl.load(bias + inner, within, 0.0)[None, :]
    below = tl.load(slope + inner // 4, within, 0.0)[None, :] if SLOPES else tl.load(slope)
    bias_sum = tl.zeros([4 * C], tl.float32)
    slope_sum = tl.zeros([4 * C], tl.float32)
    end = tl.minimum((group + 1) * span, rows)
    below_it = 2 * width * channels
    for start in range(group * span, end, R):
        row = start + tl.arange(0, R)
        there = (row < end)[:, None] & known[None, :]
        corner = (row // width) * (4 * width) + (row % width) * 2
        place = grad + corner[:, None] * channels + channel[None, :]
        left = tl.join(tl.load(place, there, 0.0), tl.load(place + below_it, there, 0.0))
        right = tl.join(tl.load(place + channels, there, 0.0), tl.load(place + below_it + channels, there, 0.0))
        value = tl.reshape(tl.join(left, right), [R, 4 * C]).to(tl.float32)
        at = row[:, None] * (4 * channels) + inner[None, :]
        inside = (row < end)[:, None] & within[None, :]
        before = tl.load(x + at, inside, 0.0).to(tl.float32) + shift
        slope_sum += tl.sum(tl.where(before > 0, 0.0, value * before), 0)
        value = tl.where(before > 0, value, value * below)
        bias_sum += tl.sum(value, 0)
        tl.store(out + at, value.to(out.dtype.element_ty), inside)
    tl.store(of_bias + group * 4 * channels + inner, bias_sum, within)
    tl.store(of_slope + group * 4 * channels + inner, slope_sum, within)


@triton.jit
def pool(x, out, rows, height, width, channels, R: tl.constexpr, C: tl.constexpr):
    """The largest of each 2 x 2: [B, height, width, channels] to [B, height // 2, width // 2, channels], ``rows``."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    there = (row < rows)[:, None] & (channel < channels)[None, :]
    high = height // 2
    wide = width // 2
    corner = ((row // (high * wide)) * height + (row // wide) % high * 2) * width + (row % wide) * 2
    place = x + corner[:, None] * channels + channel[None, :]
    below_it = width * channels
    upper = tl.maximum(tl.load(place, there, 0.0), tl.load(place + channels, there, 0.0))
    lower = tl.maximum(tl.load(place + below_it, there, 0.0), tl.load(place + below_it + channels, there, 0.0))
    tl.store(out + row[:, None] * channels + channel[None, :], tl.maximum(upper, lower), there)


@triton.jit
def unpool(grad, x, out, rows, height, width, channels, R: tl.constexpr, C: tl.constexpr):
    """The gradient of what a ReLU read whose result ``x`` was pooled: of each 2 x 2 the first that is the largest gets
    it, if that is above zero."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    there = (row < rows)[:, None] & (channel < channels)[None, :]
    high = height // 2
    wide = width // 2
    corner = ((row // (high * wide)) * height + (row // wide) % high * 2) * width + (row % wide) * 2
    place = corner[:, None] * channels + channel[None, :]
    below_it = width * channels
    first = tl.load(x + place, there, 0.0)
    second = tl.load(x + place + channels, there, 0.0)
    third = tl.load(x + place + below_it, there, 0.0)
    fourth = tl.load(x + place + below_it + channels, there, 0.0)
    value = tl.load(grad + row[:, None] * channels + channel[None, :], there, 0.0)
    most = tl.maximum(tl.maximum(first, second), tl.maximum(third, fourth))
    zero = tl.zeros_like(value)
    value = tl.where(most > 0, value, zero)
    tl.store(out + place, tl.where(first == most, value, zero), there)
    value = tl.where(first == most, zero, value)
    tl.store(out + place + channels, tl.where(second == most, value, zero), there)
    value = tl.where(second == most, zero, value)
    tl.store(out + place + below_it, tl.where(third == most, value, zero), there)
    value = tl.where(third == most, zero, value)
    tl.store(out + place + below_it + channels, tl.where(fourth == most, value, zero), there)


@triton.jit
def patches(
    image, out, rows, height, width, s_b, s_c, s_h, s_w,
    K: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What a K x K convolution reads for each pixel, channels last, then a one, then zeros: [rows, COLUMNS]."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    tap = column // CHANNELS
    y = ((row // width) % height)[:, None] + (tap // K)[None, :] - K // 2
    x = (row % width)[:, None] + (tap % K)[None, :] - K // 2
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (tap < K * K)[None, :] & (row < rows)[:, None]
    place = (row // (height * width))[:, None] * s_b + (column % CHANNELS)[None, :] * s_c + y * s_h + x * s_w
    value = tl.load(image + place, inside, 0.0).to(tl.float32)
    value = tl.where((column == K * K * CHANNELS)[None, :], 1.0, value)
    at = row[:, None] * COLUMNS + column[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), (row < rows)[:, None] & (column < COLUMNS)[None, :])


@triton.jit
def unpatches(
    grad, out, rows, height, width,
    K: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """The gradient of what ``patches`` read, [B, CHANNELS, height, width]."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    y = (row // width) % height
    x = row % width
    for channel in tl.static_range(CHANNELS):
        value = tl.zeros([R], tl.float32)
        for tap in range(K * K):
            up = tap // K - K // 2
            right = tap % K - K // 2
            inside = (row < rows) & (y - up >= 0) & (y - up < height) & (x - right >= 0) & (x - right < width)
            at = (row - up * width - right) * COLUMNS + tap * CHANNELS + channel
            value += tl.load(grad + at, inside, 0.0).to(tl.float32)
        at = ((row // (height * width)) * CHANNELS + channel) * height * width + y * width + x
        tl.store(out + at, value.to(out.dtype.element_ty), row < rows)


@triton.jit
def sum_rows(
    parts, bias, out, rows, height, width,
    K: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """A K x K convolution's result, [B, CHANNELS, height, width], of its rows', [rows, COLUMNS]: of each pixel K times
    all channels, then zeros."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    y = (row // width) % height
    for channel in tl.static_range(CHANNELS):
        value = tl.zeros([R], tl.float32) + tl.load(bias + channel)
        for k in tl.static_range(K):
            inside = (row < rows) & (y + k - K // 2 >= 0) & (y + k - K // 2 < height)
            at = (row + (k - K // 2) * width) * COLUMNS + k * CHANNELS + channel
            value += tl.load(parts + at, inside, 0.0).to(tl.float32)
        at = ((row // (height * width)) * CHANNELS + channel) * height * width + row % (height * width)
        tl.store(out + at, value, row < rows)


@triton.jit
def spread_rows(
    grad, out, rows, height, width,
    K: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """The gradient of what ``sum_rows`` read."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.arange(0, COLUMNS)
    y = ((row // width) % height)[:, None] - (column // CHANNELS)[None, :] + K // 2
    inside = (y >= 0) & (y < height) & (column < K * CHANNELS)[None, :] & (row < rows)[:, None]
    first = (row // (height * width))[:, None] * CHANNELS + (column % CHANNELS)[None, :]
    value = tl.load(grad + (first * height + y) * width + (row % width)[:, None], inside, 0.0)
    tl.store(out + row[:, None] * COLUMNS + column[None, :], value.to(out.dtype.element_ty), (row < rows)[:, None])
