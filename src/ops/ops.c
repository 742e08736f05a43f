#include "ops/ops.h"
#include "ops/rows.h"

#include <string.h>

/* The one list of ops: checks, benchmarks and the kernel matrix walk it. Kept in alphabetical order. */
static const struct dfcl_op *const table[] = {
    &dfcl_op_act_bwd,
    &dfcl_op_act_fwd,
    &dfcl_op_adamw,
    &dfcl_op_attn_bwd,
    &dfcl_op_attn_fwd,
    &dfcl_op_axpby,
    &dfcl_op_bf16_load,
    &dfcl_op_bf16_store,
    &dfcl_op_branch_bwd,
    &dfcl_op_class_embed,
    &dfcl_op_class_embed_bwd,
    &dfcl_op_colsum,
    &dfcl_op_column_stats,
    &dfcl_op_conv2d,
    &dfcl_op_ddpm_step,
    &dfcl_op_gated_residual,
    &dfcl_op_gather_rows,
    &dfcl_op_guide,
    &dfcl_op_hybrid_loss,
    &dfcl_op_linear_dw,
    &dfcl_op_linear_dx,
    &dfcl_op_linear_fwd,
    &dfcl_op_linear_step,
    &dfcl_op_ln_mod,
    &dfcl_op_ln_mod_bwd,
    &dfcl_op_norm_act,
    &dfcl_op_normal,
    &dfcl_op_pack,
    &dfcl_op_patchify,
    &dfcl_op_q_sample,
    &dfcl_op_softmax,
    &dfcl_op_sumsq,
    &dfcl_op_timestep_embed,
    &dfcl_op_unpatchify,
    NULL, /* ends the list */
};

const struct dfcl_op *const *dfcl_ops(int *count) {
    *count = (int)DFCL_COUNT(table) - 1;
    return table;
}

bool dfcl_supports_host(const struct dfcl_device *dev, const void *params) {
    return dfcl_on_host(dev);
}
bool dfcl_supports_kernels(const struct dfcl_device *dev, const void *params) {
    return dfcl_on_kernels(dev);
}
bool dfcl_supports_cpu(const struct dfcl_device *dev, const void *params) {
    return dfcl_on_cpu(dev);
}

const struct dfcl_variant *dfcl_op_choose(const struct dfcl_device *dev, const struct dfcl_op *op, const void *params) {
    for (int i = 0; i < op->variant_count; i++) {
        const struct dfcl_variant *v = &op->variants[i];
        bool reference = !strcmp(v->name, "host"); /* the only one on its backend, whatever the mask, and never anywhere else */
        if (reference ? dfcl_supports_host(dev, params) : v->supports(dev, params) && dfcl_device_allows(dev, v->name))
            return v;
    }
    return NULL;
}

dfcl_status dfcl_run_variant(struct dfcl_exec *ex, const struct dfcl_op *op, const struct dfcl_variant *v, void *params, dfcl_error *err) {
    struct dfcl_op_head *head = params;
    uint64_t need = v->scratch ? v->scratch(ex->dev, params) : 0;
    if (ex->note)
        ex->note(ex->note_user, op, v);
    if (ex->dry) {
        ex->scratch_need = DFCL_MAX(ex->scratch_need, need);
        return DFCL_OK;
    }
    if (need && (!ex->scratch.mem || ex->scratch.off + need > dfcl_mem_size(ex->scratch.mem)))
        return dfcl_fail(err, DFCL_ERROR, "%s/%s: %llu bytes of scratch were not planned", op->name, v->name, (unsigned long long)need);
    head->scratch = need ? ex->scratch : DFCL_NO_REF;
    dfcl_status s = v->launch(ex->dev, params, err);
    if (s)
        dfcl_error_prefix(err, "%s/%s", op->name, v->name);
    return s;
}

dfcl_status dfcl_run(struct dfcl_exec *ex, const struct dfcl_op *op, void *params, dfcl_error *err) {
    const struct dfcl_variant *v = dfcl_op_choose(ex->dev, op, params);
    if (!v)
        return dfcl_fail(err, DFCL_DEVICE, "%s: no variant fits the device %s%s%s", op->name, ex->dev->info.name,
                         ex->dev->variant_mask[0] ? " under the mask " : "", ex->dev->variant_mask);
    return dfcl_run_variant(ex, op, v, params, err);
}
