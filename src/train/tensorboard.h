/* Scalars for TensorBoard: an event file of its own format, written without TensorFlow.
 *
 * A record is: length u64, masked CRC32C of the length u32, bytes, masked CRC32C of the bytes u32, all little-endian. The bytes are a protobuf
 * Event {1: wall_time double, 2: step int64, 3: file_version string | 5: Summary {1: Value {1: tag string, 2: simple_value float}}}. */
#ifndef DFCL_TRAIN_TENSORBOARD_H
#define DFCL_TRAIN_TENSORBOARD_H

#include <stdio.h>

#include "base/base.h"

struct dfcl_events {
    FILE *f;
    char path[4096];
};
/* Opens for appending at byte `offset` (what lies behind is cut off; a file that is shorter, but not empty, is DFCL_FORMAT); a new or empty file
 * gets the version record. */
dfcl_status dfcl_events_open(struct dfcl_events *e, const char *path, uint64_t offset, double wall_time, dfcl_error *err);
dfcl_status dfcl_events_scalar(struct dfcl_events *e, const char *tag, double wall_time, int64_t step, float value, dfcl_error *err);
dfcl_status dfcl_events_flush(struct dfcl_events *e, dfcl_error *err);
/* Flushes and syncs; *size is that of the file. */
dfcl_status dfcl_events_sync(struct dfcl_events *e, uint64_t *size, dfcl_error *err);
void dfcl_events_close(struct dfcl_events *e);

/* CRC-32C (Castagnoli, reflected polynomial 0x82f63b78). */
uint32_t dfcl_crc32c(const void *data, size_t n);

#endif
