/* Versions of the libraries that this one is built on. */
#include <stdio.h>
#include <string.h>

#include <cjson/cJSON.h>
#include <jpeglib.h>
#include <openssl/crypto.h>
#include <png.h>
#include <zlib.h>

#include <difffit-cl/base.h>

#include "base/base.h"

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

int dfcl_components(struct dfcl_component *list, int max) {
    static const char jpeg[] =
#if defined(LIBJPEG_TURBO_VERSION)
        "turbo " TEXT(LIBJPEG_TURBO_VERSION) ", "
#endif
        "interface " TEXT(JPEG_LIB_VERSION);
    const struct {
        const char *name, *built, *loaded;
    } all[] = {
        {"zlib", ZLIB_VERSION, zlibVersion()},
        {"libpng", PNG_LIBPNG_VER_STRING, png_get_libpng_ver(NULL)},
        {"libjpeg", jpeg, ""},
        {"cJSON", TEXT(CJSON_VERSION_MAJOR) "." TEXT(CJSON_VERSION_MINOR) "." TEXT(CJSON_VERSION_PATCH), cJSON_Version()},
        {"libcrypto", OPENSSL_VERSION_TEXT, OpenSSL_version(OPENSSL_VERSION)},
#if defined(__VERSION__)
        {"compiler", __VERSION__, ""},
#endif
    };
    int n = (int)DFCL_COUNT(all);
    for (int i = 0; i < n && i < max; i++) {
        snprintf(list[i].name, sizeof list[i].name, "%s", all[i].name);
        snprintf(list[i].built, sizeof list[i].built, "%s", all[i].built);
        snprintf(list[i].loaded, sizeof list[i].loaded, "%s", all[i].loaded);
    }
    return n;
}
