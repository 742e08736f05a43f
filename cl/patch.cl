/* Pictures [B,C,H,W] to rows of p x p patches and back, n = W / p patches a row: moves only. One item per value, of the target's order; group
 * b * blocks + k covers values 256 k ... of sample b. */
DFCL_FN int patch_row(int y, int x, int n, int p) {
    return y / p * n + x / p;
}

/* cols [B*T, C*p*p], ordered (channel, dy, dx) */
DFCL_KERNEL(256, 1, 1)
patchify(const GLOBAL float *img, dfcl_i64 img_off, GLOBAL float *cols, dfcl_i64 cols_off, int C, int H, int W, int p, int blocks) {
    int b = GRP(0) / blocks, i = GRP(0) % blocks * 256 + LID(0), n = W / p, w = C * p * p;
    dfcl_i64 sample = (dfcl_i64)b * C * H * W;
    if (i >= C * H * W)
        return;
    int row = i / w, k = i % w, c = k / (p * p), dy = k / p % p, dx = k % p;
    int y = row / n * p + dy, x = row % n * p + dx;
    cols[cols_off + sample + i] = img[img_off + sample + (c * H + y) * W + x];
}

/* tok [B*T, p*p*C], ordered (dy, dx, channel) -> img */
DFCL_KERNEL(256, 1, 1)
unpatchify(const GLOBAL float *tok, dfcl_i64 tok_off, GLOBAL float *img, dfcl_i64 img_off, int C, int H, int W, int p, int blocks) {
    int b = GRP(0) / blocks, i = GRP(0) % blocks * 256 + LID(0), n = W / p;
    dfcl_i64 sample = (dfcl_i64)b * C * H * W;
    if (i >= C * H * W)
        return;
    int c = i / (H * W), y = i / W % H, x = i % W;
    img[img_off + sample + i] = tok[tok_off + sample + ((patch_row(y, x, n, p) * p + y % p) * p + x % p) * C + c];
}

/* img -> tok */
DFCL_KERNEL(256, 1, 1)
unpatchify_back(const GLOBAL float *img, dfcl_i64 img_off, GLOBAL float *tok, dfcl_i64 tok_off, int C, int H, int W, int p, int blocks) {
    int b = GRP(0) / blocks, i = GRP(0) % blocks * 256 + LID(0), n = W / p, w = C * p * p;
    dfcl_i64 sample = (dfcl_i64)b * C * H * W;
    if (i >= C * H * W)
        return;
    int row = i / w, k = i % w, dy = k / (p * C), dx = k / C % p, c = k % C;
    int y = row / n * p + dy, x = row % n * p + dx;
    tok[tok_off + sample + i] = img[img_off + sample + (c * H + y) * W + x];
}
