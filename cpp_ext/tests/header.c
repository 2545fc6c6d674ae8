#include "druse.h"

int32_t druse_header_is_c(void);
int32_t druse_header_is_c(void) { return druse_abi_version(); }
