"""Kernels of ``fused``, in Triton. Pictures are rows of channels: [B, H, W, C] in memory, B * H * W rows. No nodes.

Sums over rows are made in two stages, always in the same order: each group of ``span`` rows has a partial sum, and
the last group to arrive adds them all up, or each program of the next kernel that needs the sum. All arithmetic is
float32, whatever the tensors hold.
"""

from __future__ import annotations

# Triton reads these functions' text, and knows no annotation but constexpr.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
import triton
import triton.language as tl


@triton.jit
def _is_last(arrived, groups):
    """Whether all other groups have stored what they found, which is to be read past the multiprocessor's own cache.
    Then none has ``arrived`` any more."""
    tl.debug_barrier()
    last = tl.atomic_add(arrived, 1, sem="acq_rel") == groups - 1
    if last:
        tl.store(arrived, 0)
    return last


@triton.jit
def statistics(
    x, partial, arrived, conv_bias, running_mean, running_var, tracked, kept, rows, channels, span, eps, momentum,
    CONV_BIAS: tl.constexpr, G: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """``kept`` [2, channels]: the mean of each channel, and one over the deviation; and the running statistics move.

    ``partial`` [2, groups, channels] is of each group its mean, and its sum of squared deviations from that.
    """
    group = tl.program_id(0)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    known = channel < channels
    end = tl.minimum((group + 1) * span, rows)
    total = tl.zeros([R, C], tl.float32)
    for start in tl.range(group * span, end, R, num_stages=3):
        row = start + tl.arange(0, R)
        there = (row < end)[:, None] & known[None, :]
        total += tl.load(x + row[:, None] * channels + channel[None, :], there, 0.0).to(tl.float32)
    mean = tl.sum(total, 0) / (end - group * span)
    total = tl.zeros([R, C], tl.float32)
    for start in tl.range(group * span, end, R, num_stages=3):
        row = start + tl.arange(0, R)
        there = (row < end)[:, None] & known[None, :]
        value = tl.load(x + row[:, None] * channels + channel[None, :], there, 0.0).to(tl.float32)
        apart = tl.where(there, value - mean[None, :], 0.0)
        total += apart * apart
    groups = tl.num_programs(0)
    tl.store(partial + group * channels + channel, mean, known)
    tl.store(partial + (groups + group) * channels + channel, tl.sum(total, 0), known)
    if _is_last(arrived + tl.program_id(1), groups):
        means = _of_groups(partial, 0, groups, channels, channel, known, G)
        squares = _of_groups(partial, 1, groups, channels, channel, known, G)
        about = tl.load(partial + channel, known, 0.0, cache_modifier=".cg")
        joined, variance = _joined(means, squares, about, rows, span, groups, G)
        _keep_statistics(
            joined, variance, conv_bias, running_mean, running_var, tracked, kept, rows, channels, eps, momentum,
            channel, known, CONV_BIAS,
        )  # fmt: skip


@triton.jit
def _of_groups(partial, n, groups, channels, channel, known, G: tl.constexpr):
    """``partial[n]``, [G, C]: of each group, and zeros. Read past the multiprocessor's own cache."""
    group = tl.arange(0, G)
    there = (group < groups)[:, None] & known[None, :]
    at = partial + (n * groups + group)[:, None] * channels + channel[None, :]
    return tl.load(at, there, 0.0, cache_modifier=".cg")


@triton.jit
def _joined(means, squares, about, rows, span, groups, G: tl.constexpr):
    """Mean and variance of each channel of the groups', ``about`` the first one's mean, so that no large sums are
    subtracted (Chan, Golub and LeVeque, 1983)."""
    group = tl.arange(0, G)
    size = tl.minimum(tl.maximum(rows - group * span, 0), span).to(tl.float32)[:, None]
    apart = tl.where((group < groups)[:, None], means - about[None, :], 0.0)
    shift = tl.sum(apart * size, 0) / rows
    return about + shift, tl.sum(squares + apart * apart * size, 0) / rows - shift * shift


@triton.jit
def _keep_statistics(
    mean, variance, conv_bias, running_mean, running_var, tracked, kept, rows, channels, eps, momentum, channel, known,
    CONV_BIAS: tl.constexpr,
):  # fmt: skip
    """``kept`` [2, channels]: the mean, and one over the deviation; and the running statistics move."""
    tl.store(kept + channel, mean, known)
    tl.store(kept + channels + channel, 1.0 / tl.sqrt(variance + eps), known)
    if CONV_BIAS:
        mean += tl.load(conv_bias + channel, known, 0.0)
    old = tl.load(running_mean + channel, known, 0.0)
    tl.store(running_mean + channel, old + momentum * (mean - old), known)
    old = tl.load(running_var + channel, known, 0.0)
    tl.store(running_var + channel, old + momentum * (variance * rows / (rows - 1) - old), known)
    if tl.program_id(1) == 0:
        tl.store(tracked, tl.load(tracked) + 1)


@triton.jit
def _convolved(
    x, weight, row, rows, height, width,
    K: tl.constexpr, INTO: tl.constexpr, BACK: tl.constexpr, STAGES: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """[R, INTO] of a 3 x 3 convolution that keeps the size, of rows of K channels, the weight [O, 3, 3, I] in memory.
    With ``BACK``, of the gradient of its result, the gradient of what it read."""
    deep = tl.arange(0, K)
    into = tl.arange(0, INTO)
    y = (row // width) % height
    across = row % width
    total = tl.zeros([R, INTO], tl.float32)
    for tap in tl.range(0, 9, num_stages=STAGES):
        down = tap // 3 - 1
        right = tap % 3 - 1
        if BACK:
            down = -down
            right = -right
        there = (row < rows) & (y + down >= 0) & (y + down < height) & (across + right >= 0) & (across + right < width)
        place = (row + down * width + right)[:, None] * K + deep[None, :]
        value = tl.load(x + place, there[:, None], 0.0)
        if BACK:
            matrix = tl.load(weight + (deep[:, None] * 9 + tap) * INTO + into[None, :])
        else:
            matrix = tl.trans(tl.load(weight + (into[:, None] * 9 + tap) * K + deep[None, :]))
        total = tl.dot(value, matrix, total, input_precision="ieee")
    return total


@triton.jit
def convolve(
    x, weight, y, partial, rows, height, width,
    K: tl.constexpr, C: tl.constexpr, R: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A 3 x 3 convolution from K to C channels, and ``partial`` [2, groups, C] as of ``statistics``: each program is a
    group."""
    group = tl.program_id(0)
    row = group * R + tl.arange(0, R)
    channel = tl.arange(0, C)
    there = (row < rows)[:, None]
    low = _convolved(x, weight, row, rows, height, width, K, C, False, STAGES, R).to(y.dtype.element_ty)
    tl.store(y + row[:, None] * C + channel[None, :], low, there)
    value = tl.where(there, low.to(tl.float32), 0.0)
    mean = tl.sum(value, 0) / tl.minimum(rows - group * R, R)
    apart = tl.where(there, value - mean[None, :], 0.0)
    tl.store(partial + group * C + channel, mean)
    tl.store(partial + (tl.num_programs(0) + group) * C + channel, tl.sum(apart * apart, 0))


@triton.jit
def _tile(rows, channels, R: tl.constexpr, C: tl.constexpr):
    """A program's channels and which of them are there; where its rows of those lie, and which of them are there."""
    channel = tl.program_id(1) * C + tl.arange(0, C)
    known = channel < channels
    row = tl.program_id(0) * R + tl.arange(0, R)
    place = row[:, None] * channels + channel[None, :]
    return channel, known, place, (row < rows)[:, None] & known[None, :]


@triton.jit
def join_and_normalise(
    x, partial, conv_bias, running_mean, running_var, tracked, kept, weight, bias, slope, residual, out, rows, channels,
    span, groups, eps, momentum, leak,
    CONV_BIAS: tl.constexpr, SLOPES: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr,
    G: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """What ``statistics`` has left to do, by each program, and ``normalise``."""
    channel, known, place, there = _tile(rows, channels, R, C)
    # All is read before anything is waited for.
    means = _of_groups(partial, 0, groups, channels, channel, known, G)
    squares = _of_groups(partial, 1, groups, channels, channel, known, G)
    about = tl.load(partial + channel, known, 0.0, cache_modifier=".cg")
    gamma, beta, below = _learned(weight, bias, slope, leak, channel, known, SLOPES, ACT)
    value = tl.load(x + place, there, 0.0)
    if RESIDUAL:
        also = tl.load(residual + place, there, 0.0)
    mean, variance = _joined(means, squares, about, rows, span, groups, G)
    scale = 1.0 / tl.sqrt(variance + eps)
    value = _normal(value.to(tl.float32), mean[None, :], scale[None, :], gamma, beta, below, ACT)
    if RESIDUAL:
        value += also.to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), there)
    if tl.program_id(0) == 0:
        _keep_statistics(
            mean, variance, conv_bias, running_mean, running_var, tracked, kept, rows, channels, eps, momentum, channel,
            known, CONV_BIAS,
        )  # fmt: skip


@triton.jit
def _learned(weight, bias, slope, leak, channel, known, SLOPES: tl.constexpr, ACT: tl.constexpr):
    """BatchNorm's weight and bias, and what the activation multiplies with below zero.

    ``ACT``: 0 none, 1 ``slope`` (one, or with ``SLOPES`` one a channel), 2 ``leak``.
    """
    gamma = tl.load(weight + channel, known, 0.0)[None, :]
    beta = tl.load(bias + channel, known, 0.0)[None, :]
    below = tl.zeros_like(gamma) + leak
    if ACT == 1:
        below = tl.load(slope + channel, known, 0.0)[None, :] if SLOPES else tl.zeros_like(gamma) + tl.load(slope)
    return gamma, beta, below


@triton.jit
def _normal(value, mean, scale, gamma, beta, below, ACT: tl.constexpr):
    """BatchNorm and an activation."""
    value = (value - mean) * (scale * gamma) + beta
    if ACT != 0:
        value = tl.where(value > 0, value, value * below)
    return value


@triton.jit
def normalise(
    x, kept, weight, bias, slope, residual, out, rows, channels, leak,
    SLOPES: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """BatchNorm of ``x`` by its own statistics, an activation, and a residual added."""
    channel, known, place, there = _tile(rows, channels, R, C)
    value = tl.load(x + place, there, 0.0).to(tl.float32)
    mean = tl.load(kept + channel, known, 0.0)[None, :]
    scale = tl.load(kept + channels + channel, known, 0.0)[None, :]
    gamma, beta, below = _learned(weight, bias, slope, leak, channel, known, SLOPES, ACT)
    value = _normal(value, mean, scale, gamma, beta, below, ACT)
    if RESIDUAL:
        value += tl.load(residual + place, there, 0.0).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), there)


@triton.jit
def gradients(
    grad, also, total, x, kept, weight, bias, slope, partial, arrived, sums, rows, channels, span, leak,
    ALSO: tl.constexpr, SLOPES: tl.constexpr, ACT: tl.constexpr, G: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """``sums`` [3, channels], which the gradients of BatchNorm's bias, of its weight and of the slope are made of.
    With ``ALSO`` the gradient is ``total``, of two."""
    group = tl.program_id(0)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    known = channel < channels
    of_bias = tl.zeros([R, C], tl.float32)
    of_weight = tl.zeros([R, C], tl.float32)
    of_slope = tl.zeros([R, C], tl.float32)
    end = tl.minimum((group + 1) * span, rows)
    for start in tl.range(group * span, end, R, num_stages=3):
        row = start + tl.arange(0, R)
        there = (row < end)[:, None] & known[None, :]
        place = row[:, None] * channels + channel[None, :]
        value = tl.load(grad + place, there, 0.0)
        if ALSO:
            value = (value.to(tl.float32) + tl.load(also + place, there, 0.0).to(tl.float32)).to(value.dtype)
            tl.store(total + place, value, there)
        of_one, of_two, of_three = _gradients_of(
            value, x + place, there, kept, weight, bias, slope, channels, leak, channel, known, SLOPES, ACT
        )
        of_bias += of_one
        of_weight += of_two
        of_slope += of_three
    arrived += tl.program_id(1)
    number: tl.constexpr = 3 if ACT == 1 else 2
    _add_up(of_bias, of_weight, of_slope, partial, arrived, sums, channels, channel, known, number, G)


@triton.jit
def _gradients_of(
    grad, x, there, kept, weight, bias, slope, channels, leak, channel, known, SLOPES: tl.constexpr, ACT: tl.constexpr
):
    """What some rows give to ``sums``."""
    mean = tl.load(kept + channel, known, 0.0)[None, :]
    scale = tl.load(kept + channels + channel, known, 0.0)[None, :]
    gamma, beta, below = _learned(weight, bias, slope, leak, channel, known, SLOPES, ACT)
    value = grad.to(tl.float32)
    normal = (tl.load(x, there, 0.0).to(tl.float32) - mean) * scale
    of_slope = tl.zeros_like(value)
    if ACT != 0:
        before = normal * gamma + beta
        of_slope = tl.where(before > 0, 0.0, value * before)
        value = tl.where(before > 0, value, value * below)
    return value, value * normal, of_slope


@triton.jit
def _store_partial(one, two, three, partial, channels, channel, known, NUMBER: tl.constexpr):
    """Into ``partial`` [NUMBER, groups, channels], what this group's rows add up to."""
    at = partial + tl.program_id(0) * channels + channel
    groups = tl.num_programs(0)
    tl.store(at, tl.sum(one, 0), known)
    tl.store(at + groups * channels, tl.sum(two, 0), known)
    if NUMBER == 3:
        tl.store(at + 2 * groups * channels, tl.sum(three, 0), known)


@triton.jit
def _add_up(one, two, three, partial, arrived, sums, channels, channel, known, NUMBER: tl.constexpr, G: tl.constexpr):
    """``sums`` [NUMBER, channels] over all groups."""
    _store_partial(one, two, three, partial, channels, channel, known, NUMBER)
    groups = tl.num_programs(0)
    if _is_last(arrived, groups):
        ones = _of_groups(partial, 0, groups, channels, channel, known, G)
        twos = _of_groups(partial, 1, groups, channels, channel, known, G)
        tl.store(sums + channel, tl.sum(ones, 0), known)
        tl.store(sums + channels + channel, tl.sum(twos, 0), known)
        if NUMBER == 3:
            threes = _of_groups(partial, 2, groups, channels, channel, known, G)
            tl.store(sums + 2 * channels + channel, tl.sum(threes, 0), known)


@triton.jit
def convolve_back(
    grad, conv, also, total, x, kept, weight, bias, slope, partial, rows, height, width, leak,
    ALSO: tl.constexpr, SLOPES: tl.constexpr, ACT: tl.constexpr,
    K: tl.constexpr, C: tl.constexpr, R: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``total``, the gradient of what a 3 x 3 convolution from C to K channels read, with ``ALSO`` and one more; and of
    it, ``partial`` [3, groups, C] as of ``gradients``, of the layer before. Each program is a group."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    channel = tl.arange(0, C)
    known = channel < C
    there = (row < rows)[:, None] & known[None, :]
    place = row[:, None] * C + channel[None, :]
    value = _convolved(grad, conv, row, rows, height, width, K, C, True, STAGES, R).to(total.dtype.element_ty)
    if ALSO:
        value = (value.to(tl.float32) + tl.load(also + place, there, 0.0).to(tl.float32)).to(value.dtype)
    tl.store(total + place, value, there)
    of_bias, of_weight, of_slope = _gradients_of(
        value, x + place, there, kept, weight, bias, slope, C, leak, channel, known, SLOPES, ACT
    )
    _store_partial(of_bias, of_weight, of_slope, partial, C, channel, known, 3 if ACT == 1 else 2)


@triton.jit
def through_statistics(
    grad, x, kept, weight, bias, slope, partial, sums, out, rows, channels, groups, leak,
    JOIN: tl.constexpr, SLOPES: tl.constexpr, ACT: tl.constexpr, G: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The gradient of what was normalised (Ioffe and Szegedy, 2015, section 3). With ``JOIN`` each program first makes
    ``sums`` of ``partial``."""
    channel, known, place, there = _tile(rows, channels, R, C)
    if JOIN:
        of_biases = _of_groups(partial, 0, groups, channels, channel, known, G)
        of_weights = _of_groups(partial, 1, groups, channels, channel, known, G)
    mean = tl.load(kept + channel, known, 0.0)[None, :]
    scale = tl.load(kept + channels + channel, known, 0.0)[None, :]
    gamma, beta, below = _learned(weight, bias, slope, leak, channel, known, SLOPES, ACT)
    value = tl.load(grad + place, there, 0.0)
    normal = tl.load(x + place, there, 0.0)
    if JOIN:
        of_bias = tl.sum(of_biases, 0)
        of_weight = tl.sum(of_weights, 0)
    else:
        of_bias = tl.load(sums + channel, known, 0.0)
        of_weight = tl.load(sums + channels + channel, known, 0.0)
    value = value.to(tl.float32)
    normal = (normal.to(tl.float32) - mean) * scale
    if ACT != 0:
        value = tl.where(normal * gamma + beta > 0, value, value * below)
    value = (value - (of_bias / rows)[None, :] - normal * (of_weight / rows)[None, :]) * (gamma * scale)
    tl.store(out + place, value.to(out.dtype.element_ty), there)
    if JOIN:  # noqa: SIM102  a constant
        if tl.program_id(0) == 0:
            tl.store(sums + channel, of_bias, known)
            tl.store(sums + channels + channel, of_weight, known)
            if ACT == 1:
                of_slopes = _of_groups(partial, 2, groups, channels, channel, known, G)
                tl.store(sums + 2 * channels + channel, tl.sum(of_slopes, 0), known)


@triton.jit
def shuffle(x, bias, slope, out, rows, width, channels, SLOPES: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    """PixelShuffle of 2 after a bias, and PReLU: [rows, 4, channels] of [B, H, W] to [B, 2 H, 2 W, channels].

    The bias is in the order of PixelShuffle, four corners a channel.
    """
    row = tl.program_id(0) * R + tl.arange(0, R)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    corner = tl.program_id(2)
    known = channel < channels
    there = (row < rows)[:, None] & known[None, :]
    value = tl.load(x + (4 * row + corner)[:, None] * channels + channel[None, :], there, 0.0).to(tl.float32)
    value += tl.load(bias + 4 * channel + corner, known, 0.0)[None, :]
    below = tl.load(slope + channel, known, 0.0)[None, :] if SLOPES else tl.load(slope)
    value = tl.where(value > 0, value, value * below)
    place = _corner(row, corner, width)[:, None] * channels + channel[None, :]
    tl.store(out + place, value.to(out.dtype.element_ty), there)


@triton.jit
def _corner(row, corner, width):
    """Of each pixel of a map, the place of one of the four that it becomes."""
    return (2 * (row // width) + corner // 2) * (2 * width) + 2 * (row % width) + corner % 2


@triton.jit
def unshuffle(
    grad, x, bias, slope, out, partial, arrived, sums, rows, width, channels, span,
    SLOPES: tl.constexpr, G: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The gradient of what ``shuffle`` read; and ``sums`` [2, 4, channels] for the gradients of bias and slope."""
    group = tl.program_id(0)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    corner = tl.program_id(2)
    known = channel < channels
    shift = tl.load(bias + 4 * channel + corner, known, 0.0)[None, :]
    below = tl.load(slope + channel, known, 0.0)[None, :] if SLOPES else tl.load(slope)
    of_bias = tl.zeros([R, C], tl.float32)
    of_slope = tl.zeros([R, C], tl.float32)
    end = tl.minimum((group + 1) * span, rows)
    for start in tl.range(group * span, end, R, num_stages=3):
        row = start + tl.arange(0, R)
        there = (row < end)[:, None] & known[None, :]
        place = _corner(row, corner, width)[:, None] * channels + channel[None, :]
        value = tl.load(grad + place, there, 0.0).to(tl.float32)
        at = (4 * row + corner)[:, None] * channels + channel[None, :]
        before = tl.load(x + at, there, 0.0).to(tl.float32) + shift
        of_slope += tl.where(before > 0, 0.0, value * before)
        value = tl.where(before > 0, value, value * below)
        of_bias += value
        tl.store(out + at, value.to(out.dtype.element_ty), there)
    arrived += tl.program_id(1) * 4 + corner
    _add_up(of_bias, of_slope, of_slope, partial, arrived, sums, 4 * channels, corner * channels + channel, known, 2, G)


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
def _patches(image, row, column, rows, height, width, s_b, s_c, s_h, s_w, K: tl.constexpr, CHANNELS: tl.constexpr):
    """What a K x K convolution reads for some pixels, channels last, then a one, then zeros: [rows, columns]."""
    tap = column // CHANNELS
    y = ((row // width) % height)[:, None] + (tap // K)[None, :] - K // 2
    x = (row % width)[:, None] + (tap % K)[None, :] - K // 2
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (tap < K * K)[None, :] & (row < rows)[:, None]
    place = (row // (height * width))[:, None] * s_b + (column % CHANNELS)[None, :] * s_c + y * s_h + x * s_w
    value = tl.load(image + place, inside, 0.0).to(tl.float32)
    return tl.where((column == K * K * CHANNELS)[None, :] & (row < rows)[:, None], 1.0, value)


@triton.jit
def patches(
    image, out, rows, height, width, s_b, s_c, s_h, s_w,
    K: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``_patches`` of all pixels, [rows, COLUMNS]."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    value = _patches(image, row, column, rows, height, width, s_b, s_c, s_h, s_w, K, CHANNELS)
    at = row[:, None] * COLUMNS + column[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), (row < rows)[:, None] & (column < COLUMNS)[None, :])


@triton.jit
def convolve_few(
    image, matrix, out, rows, height, width, s_b, s_c, s_h, s_w, channels, leak,
    K: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """A K x K convolution of a picture, its bias, and a LeakyReLU: [rows, channels]. ``matrix`` [channels, COLUMNS] has
    the order of ``patches``."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.arange(0, COLUMNS)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    known = channel < channels
    value = _patches(image, row, column, rows, height, width, s_b, s_c, s_h, s_w, K, CHANNELS)
    weights = tl.load(matrix + channel[:, None] * COLUMNS + column[None, :], known[:, None], 0.0)
    value = tl.dot(value.to(weights.dtype), tl.trans(weights), input_precision="ieee")
    value = tl.where(value > 0, value, value * leak)
    at = row[:, None] * channels + channel[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), (row < rows)[:, None] & known[None, :])


@triton.jit
def _before_leak(grad, out, at, there, leak):
    """The gradient of what a LeakyReLU read, whose result is ``out``."""
    value = tl.load(grad + at, there, 0.0)
    return tl.where(tl.load(out + at, there, 0.0) > 0, value, (value.to(tl.float32) * leak).to(value.dtype))


@triton.jit
def convolve_few_back(
    grad, out, matrix, of_patches, rows, channels, leak, COLUMNS: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    """The gradient of the ``patches`` that ``convolve_few`` read: [rows, COLUMNS]."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.arange(0, COLUMNS)
    total = tl.zeros([R, COLUMNS], tl.float32)
    for first in range(0, channels, C):
        channel = first + tl.arange(0, C)
        known = channel < channels
        at = row[:, None] * channels + channel[None, :]
        value = _before_leak(grad, out, at, (row < rows)[:, None] & known[None, :], leak)
        weights = tl.load(matrix + channel[:, None] * COLUMNS + column[None, :], known[:, None], 0.0)
        total = tl.dot(value, weights, total, input_precision="ieee")
    at = row[:, None] * COLUMNS + column[None, :]
    tl.store(of_patches + at, total.to(of_patches.dtype.element_ty), (row < rows)[:, None])


@triton.jit
def convolve_few_weight(
    grad, out, image, partial, rows, height, width, s_b, s_c, s_h, s_w, channels, span, leak,
    K: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The gradient of ``convolve_few``'s matrix by each group of rows: ``partial`` [groups, channels, COLUMNS]."""
    group = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    known = channel < channels
    total = tl.zeros([C, COLUMNS], tl.float32)
    end = tl.minimum((group + 1) * span, rows)
    for start in tl.range(group * span, end, R, num_stages=2):
        row = start + tl.arange(0, R)
        at = row[:, None] * channels + channel[None, :]
        value = _before_leak(grad, out, at, (row < end)[:, None] & known[None, :], leak)
        read = _patches(image, row, column, rows, height, width, s_b, s_c, s_h, s_w, K, CHANNELS).to(value.dtype)
        total = tl.dot(tl.trans(value), read, total, input_precision="ieee")
    at = (group * channels + channel)[:, None] * COLUMNS + column[None, :]
    tl.store(partial + at, total, known[:, None])


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
    K: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A K x K convolution's result, [B, CHANNELS, height, width], of its rows', [rows, COLUMNS]: of each pixel K times
    all channels, then zeros."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    channel = tl.arange(0, WIDE)
    known = channel < CHANNELS
    y = (row // width) % height
    value = tl.zeros([R, WIDE], tl.float32) + tl.load(bias + channel, known, 0.0)[None, :]
    for k in tl.static_range(K):
        inside = (row < rows) & (y + k - K // 2 >= 0) & (y + k - K // 2 < height)
        at = (row + (k - K // 2) * width)[:, None] * COLUMNS + (k * CHANNELS + channel)[None, :]
        value += tl.load(parts + at, inside[:, None] & known[None, :], 0.0).to(tl.float32)
    first = (row // (height * width))[:, None] * CHANNELS + channel[None, :]
    at = first * height * width + (row % (height * width))[:, None]
    tl.store(out + at, value, (row < rows)[:, None] & known[None, :])


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
