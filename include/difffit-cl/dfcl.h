/* difffit-cl: everything. */
#ifndef DFCL_DFCL_H
#define DFCL_DFCL_H

#include <difffit-cl/base.h>
#include <difffit-cl/device.h>
#include <difffit-cl/encode.h>
#include <difffit-cl/model.h>
#include <difffit-cl/sample.h>
#include <difffit-cl/train.h>
#include <difffit-cl/vae.h>
#include <difffit-cl/verify.h>

#endif
