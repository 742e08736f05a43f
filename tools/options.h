/* Inside cli_parse: tables, values, and the sources below the command line. */
#ifndef TOOLS_OPTIONS_H
#define TOOLS_OPTIONS_H

#include "cli.h"

struct options_tables {
    const struct cli_option *own, *common; /* each ends with a NULL name */
};
/* The option of that name ("--steps"); else NULL and in *near one that is spelled much like it, or NULL. */
const struct cli_option *options_find(const struct options_tables *t, const char *name, const struct cli_option **near);
/* Sets an option from text (flags: "on", "off", ...; NULL: on). False: *expected says what is. A list begins anew with each source. */
bool options_set(struct cli *c, const struct cli_option *o, const char *value, enum cli_from from, char *expected, size_t size);

/* Sets options by the configuration file, if there is one, and the environment. 0, or the exit code after a message. */
int options_from_file(struct cli *c, const struct options_tables *t);
int options_from_environment(struct cli *c, const struct options_tables *t);
/* One line for each variable of the environment that looks like an option and is none. */
void options_warn_unknown(struct cli *c);
/* Fills c->options. */
void options_keep(struct cli *c, const struct options_tables *t);

#endif
