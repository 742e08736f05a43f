/* --help, --man and --completion, from the commands' option tables. */
#include "cli.h"

#include <ctype.h>
#include <string.h>

static const struct {
    int code;
    const char *text;
} exit_codes[] = {{DFCL_OK, "done"},
                  {DFCL_ERROR, "other error"},
                  {DFCL_USAGE, "usage"},
                  {DFCL_DEVICE, "device"},
                  {DFCL_NOMEM, "out of memory"},
                  {DFCL_NONFINITE, "non-finite numbers"},
                  {DFCL_FORMAT, "bad or mismatched file"},
                  {DFCL_IO, "input/output"},
                  {DFCL_INTERRUPTED, "interrupted"},
                  {143, "terminated (training saves first)"}};
enum { CODES = sizeof exit_codes / sizeof *exit_codes };

/* What a program takes instead of a command. */
static const char *const alone[][2] = {{"--help", "the commands"},
                                       {"--version", "the version"},
                                       {"--man", "the manual page, for man -l -"},
                                       {"--completion bash|zsh", "the completion script of a shell"}};
enum { ALONE = sizeof alone / sizeof *alone };

static void upper_case(const char *s, char *buf, size_t size) {
    snprintf(buf, size, "%s", s);
    for (char *q = buf; *q; q++)
        *q = (char)toupper((unsigned char)*q);
}

/* ---- help ---- */

/* Words from `column` on, wrapped at 100 columns and indented by `indent`. */
static void wrap(FILE *f, const char *text, int column, int indent) {
    bool first = true;
    for (const char *w = text + strspn(text, " "); *w; w += strspn(w, " ")) {
        int n = (int)strcspn(w, " ");
        if (!first && column + 1 + n > 99) {
            fprintf(f, "\n%*s", indent, "");
            column = indent;
            first = true;
        }
        fprintf(f, "%s%.*s", first ? "" : " ", n, w);
        column += n + !first;
        first = false;
        w += n;
    }
}

static void help_row(FILE *f, const char *name, const char *arg, const char *text) {
    char left[96];
    snprintf(left, sizeof left, "%s%s%s", name, arg ? " " : "", arg ? arg : "");
    if (strlen(left) > 26)
        fprintf(f, "  %s\n%29s", left, "");
    else
        fprintf(f, "  %-26s ", left);
    wrap(f, text, 29, 29);
    fputc('\n', f);
}

void cli_help(const struct cli *c, const char *usage, const struct cli_option *options, const struct cli_option *common) {
    printf("usage: %s %s\n\n", c->program->name, usage);
    for (const struct cli_option *o = options; o->name; o++)
        help_row(stdout, o->name, o->arg, o->help);
    printf("%sCommon options:\n", options->name ? "\n" : "");
    for (const struct cli_option *o = common; o->name; o++)
        help_row(stdout, o->name, o->arg, o->help);
    printf("\nAn option may also be given as an environment variable (--max-memory: %sMAX_MEMORY) or in the\n"
           "--config file (\"max-memory\"). --NAME=off takes a flag back.\n",
           c->program->prefix);
}

void cli_program_help(const struct cli_program *p, FILE *f) {
    char noun[32], text[640];
    upper_case(p->noun, noun, sizeof noun);
    fprintf(f, "usage: %s %s [options]\n\n%s\n\n", p->name, noun, p->about);
    for (int i = 0; i < p->count; i++)
        fprintf(f, "  %-10s %s\n", p->commands[i].name, p->commands[i].help);
    fputc('\n', f);
    for (int i = 0; i < ALONE; i++)
        help_row(f, alone[i][0], NULL, alone[i][1]);
    size_t n = (size_t)snprintf(text, sizeof text, "`%s %s --help` has the options. Exit codes:", p->name, noun);
    for (int i = 0; i < CODES && n < sizeof text; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, " %d %s%s", exit_codes[i].code, exit_codes[i].text, i + 1 < CODES ? "," : ".");
    fputc('\n', f);
    wrap(f, text, 0, 0);
    fputc('\n', f);
}

/* ---- manual page ---- */

/* Text as roff takes it: nothing is a request, a hyphen can be copied into a shell. Newlines stay. */
static void roff(const char *s) {
    bool code = false; /* between ` and ` */
    for (bool start = true; *s; s++) {
        if (start && (*s == '.' || *s == '\''))
            fputs("\\&", stdout);
        start = *s == '\n';
        if (*s == '\\')
            fputs("\\e", stdout);
        else if (*s == '-')
            fputs("\\-", stdout);
        else if (*s == '`')
            fputs((code = !code) ? "\\fB" : "\\fR", stdout);
        else if (*s == '\'')
            fputs("\\(aq", stdout);
        else
            fputc(*s, stdout);
    }
}

static void man_row(const char *name, const char *arg, const char *text) {
    printf(".TP\n\\fB");
    roff(name);
    printf("\\fR");
    if (arg) {
        printf(" \\fI");
        roff(arg);
        printf("\\fR");
    }
    putchar('\n');
    roff(text);
    putchar('\n');
}

static void man_options(const struct cli_option *options) {
    for (const struct cli_option *o = options; o->name; o++)
        man_row(o->name, o->arg, o->help);
}

static void man_command(struct cli *c, const char *usage, const struct cli_option *options, const struct cli_option *common, int words) {
    const char *text = strstr(usage, "\n\n");
    char synopsis[512];
    snprintf(synopsis, sizeof synopsis, "%.*s", text ? (int)(text - usage) : (int)strlen(usage), usage);
    printf(".SS ");
    roff(c->command);
    printf("\n.nf\n\\fB");
    roff(c->program->name);
    printf("\\fR ");
    for (char *line = synopsis, *next; line; line = next) { /* a second form stands on a line of its own, indented for --help */
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        roff(line + strspn(line, " "));
        putchar('\n');
    }
    printf(".fi\n.PP\n");
    roff(text ? text + 2 : "");
    putchar('\n');
    man_options(options);
}

static void man_common(struct cli *c, const char *usage, const struct cli_option *options, const struct cli_option *common, int words) {
    man_options(common);
    for (int i = 0; i < c->program->count; i++)
        if (c->program->commands[i].no_device) {
            printf(".PP\n");
            roff("Commands that use no device have no --device:");
            for (int k = i; k < c->program->count; k++)
                if (c->program->commands[k].no_device) {
                    putchar(' ');
                    roff(c->program->commands[k].name);
                }
            putchar('\n');
            break;
        }
}

static void man_section(const char *title, const char *text) {
    printf(".SH %s\n", title);
    roff(text);
    putchar('\n');
}

void cli_man(const struct cli_program *p) {
    char upper[64], text[1024];
    upper_case(p->name, upper, sizeof upper);
    printf(".\\\" Written by `%s --man`.\n.TH \"", p->name);
    roff(upper);
    printf("\" 1 \"\" \"difffit\\-cl %s\" \"User Commands\"\n.SH NAME\n", dfcl_version());
    roff(p->name);
    printf(" \\- ");
    roff(p->summary);
    printf("\n.SH SYNOPSIS\n\\fB");
    roff(p->name);
    printf("\\fR \\fI%s\\fR [options]\n.br\n", p->noun);
    for (int i = 0; i < ALONE; i++) {
        printf("%s\\fB", i ? ".br\n" : "");
        roff(p->name);
        putchar(' ');
        roff(alone[i][0]);
        printf("\\fR\n");
    }
    man_section("DESCRIPTION", p->about);
    printf(".SH COMMANDS\n");
    for (int i = 0; i < p->count; i++)
        cli_visit(p, p->commands[i].name, man_command, NULL);
    printf(".SH COMMON OPTIONS\n");
    const struct cli_command *all = p->commands;
    while (all->no_device) /* one that has every common option */
        all++;
    cli_visit(p, all->name, man_common, NULL);
    snprintf(text, sizeof text,
             "Every option can also come from a JSON file (--config) or from an environment variable: the command line wins over the environment, the "
             "environment over the file. --NAME=off takes back a flag that the file or the environment sets.\nIn the file, options have their names without "
             "dashes, at the top for every command that has them, or in an object named like a command:");
    man_section("CONFIGURATION", text);
    printf(".PP\n.nf\n");
    roff("  {\"device\": \"opencl:0\", \"train\": {\"batch\": 8}, \"sample\": {\"steps\": 50}}\n");
    printf(".fi\n.PP\n");
    roff("The config.json of a run is taken too: it has the options that the run was started with.\n");
    printf(".SH ENVIRONMENT\n");
    snprintf(text, sizeof text, "%sNAME", p->prefix);
    man_row(text, NULL,
            "the option --name, in capitals and with _ for - inside it; flags are on or off, items of a list are separated by commas. An empty one is "
            "taken as not set.");
    man_row("DIFFFIT_CL_BF16_DOT", NULL, "0: do not use the processor's bf16 dot products");
    man_row("XDG_CACHE_HOME, HOME", NULL, "where compiled kernels and passed self-tests are kept: $XDG_CACHE_HOME/difffit-cl, else ~/.cache/difffit-cl");
    man_row("OCL_ICD_VENDORS", NULL, "read by the OpenCL loader: folder or file that names the drivers");
    man_row("POCL_MAX_PTHREAD_COUNT, POCL_AFFINITY", NULL, "set for PoCL where they are not set: a worker a core, on processors that may be used");
    printf(".SH EXIT STATUS\n");
    for (int i = 0; i < CODES; i++) {
        char code[8];
        snprintf(code, sizeof code, "%d", exit_codes[i].code);
        man_row(code, NULL, exit_codes[i].text);
    }
    printf(".SH EXAMPLES\n");
    for (const char *const(*e)[2] = p->examples; (*e)[0]; e++)
        man_row((*e)[0], NULL, (*e)[1]);
    printf(".SH SEE ALSO\n");
    for (const char *const *s = p->see_also; *s; s++) {
        printf("%s\\fB", s == p->see_also ? "" : ",\n");
        roff(*s);
        printf("\\fR(1)");
    }
    printf("\n");
}

/* ---- completion ---- */

/* Prints the words of "a|b|DIR" that may be given as they are, `before` before the first; `all`: of a choice, whatever they are. */
static void print_words(const char *before, const char *arg, bool all) {
    const char *space = before;
    for (const char *p = arg; *p;) {
        size_t k = strcspn(p, "|");
        if (all || islower((unsigned char)*p)) {
            printf("%s%.*s", space, (int)k, p);
            space = " ";
        }
        p += k + (p[k] == '|');
    }
}

/* Name of a shell function: "_difffit_cl". */
static void function_name(const struct cli_program *p, char *buf, size_t size) {
    snprintf(buf, size, "_%s", p->name);
    for (char *q = buf; *q; q++)
        *q = *q == '-' ? '_' : *q;
}

static void bash_values(struct cli *c, const char *usage, const struct cli_option *options, const struct cli_option *common, int words) {
    const struct cli_option *tables[2] = {options, common};
    for (int k = 0; k < 2; k++)
        for (const struct cli_option *o = tables[k]; o->name; o++) {
            if (o->kind == CLI_FLAG)
                continue;
            printf("    '%s %s') ", c->command, o->name);
            if (o->kind == CLI_CHOICE || o->kind == CLI_PATH || o->kind == CLI_LIST) {
                printf("words='");
                print_words("", o->arg, o->kind == CLI_CHOICE);
                printf("'%s ;;\n", o->kind == CLI_CHOICE ? "" : " files=1");
            } else {
                printf("%s ;;\n", o->kind == CLI_DEVICE ? "words=$(_difffit_devices)" : "nothing=1");
            }
        }
}

static void bash_names(struct cli *c, const char *usage, const struct cli_option *options, const struct cli_option *common, int words) {
    const struct cli_option *tables[2] = {options, common};
    printf("    %s) words='", c->command);
    for (int k = 0; k < 2; k++)
        for (const struct cli_option *o = tables[k]; o->name; o++)
            printf("%s%s", k || o != options ? " " : "", o->name);
    printf("'%s ;;\n", words ? " files=1" : "");
}

/* Devices are asked for when one is to be completed: by the command, whichever program it is for. */
static const char devices_function[] = "_difffit_devices() {\n"
                                       "  echo auto\n"
                                       "  difffit-cl devices 2>/dev/null | sed -n 's/^[0-9][0-9]*  \\([^ ]*\\).*/\\1/p'\n"
                                       "}\n\n";

static void bash(const struct cli_program *p) {
    char name[64];
    function_name(p, name, sizeof name);
    printf("# Completion for bash, written by `%s --completion bash`.\n\n%s%s() {\n", p->name, devices_function, name);
    printf("  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words= files= nothing=\n"
           "  COMPREPLY=()\n"
           "  if [[ $cur == = ]]; then cur=\n" /* --name=value comes as three words */
           "  elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi\n"
           "  if [[ $COMP_CWORD -eq 1 ]]; then\n    words='");
    for (int i = 0; i < p->count; i++)
        printf("%s ", p->commands[i].name);
    for (int i = 0; i < ALONE; i++)
        printf("%s%.*s", i ? " " : "", (int)strcspn(alone[i][0], " "), alone[i][0]);
    printf("'\n  elif [[ ${COMP_WORDS[1]} == --completion ]]; then\n    words='bash zsh'\n  else\n    case \"${COMP_WORDS[1]} $prev\" in\n");
    for (int i = 0; i < p->count; i++)
        cli_visit(p, p->commands[i].name, bash_values, NULL);
    printf("    *) case ${COMP_WORDS[1]} in\n");
    for (int i = 0; i < p->count; i++)
        cli_visit(p, p->commands[i].name, bash_names, NULL);
    printf("    esac\n    [[ $cur == -* ]] && files= || words= ;;\n    esac\n  fi\n"
           "  [[ $nothing ]] && return\n"
           "  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
           "  if [[ $files ]]; then\n"
           "    local IFS=$'\\n'\n"
           "    compopt -o filenames 2>/dev/null\n"
           "    COMPREPLY+=($(compgen -f -- \"$cur\"))\n"
           "  fi\n}\n\ncomplete -F %s %s\n",
           name, p->name);
}

/* Text between the brackets or colons of an _arguments specification, itself in single quotes. */
static void zsh_text(const char *s) {
    for (; *s; s++) {
        if (*s == '\'')
            fputs("'\\''", stdout);
        else if (strchr("[]:\\", *s))
            printf("\\%c", *s);
        else
            fputc(*s, stdout);
    }
}

static void zsh_option(const struct cli_option *o) {
    printf("        '%s%s%s[", o->kind == CLI_LIST ? "*" : "", o->name, o->kind == CLI_FLAG || o->name[1] != '-' ? "" : "=");
    zsh_text(o->help);
    printf("]");
    if (o->kind != CLI_FLAG) {
        printf(":");
        zsh_text(o->arg);
        printf(":");
        if (o->kind == CLI_CHOICE) {
            print_words("(", o->arg, true);
            printf(")");
        } else if (o->kind == CLI_PATH || o->kind == CLI_LIST) {
            print_words("{_files; compadd -- ", o->arg, false);
            printf(islower((unsigned char)o->arg[0]) ? "}" : "_files");
        } else if (o->kind == CLI_DEVICE) {
            printf("{compadd -- $(_difffit_devices)}");
        }
    }
    printf("'");
}

static void zsh_command(struct cli *c, const char *usage, const struct cli_option *options, const struct cli_option *common, int words) {
    const struct cli_option *tables[2] = {options, common};
    printf("    %s)\n      _arguments", c->command);
    for (int k = 0; k < 2; k++)
        for (const struct cli_option *o = tables[k]; o->name; o++) {
            printf(" \\\n");
            zsh_option(o);
        }
    printf("%s\n      ;;\n", words ? " \\\n        '*:file:_files'" : "");
}

static void zsh(const struct cli_program *p) {
    char name[64];
    function_name(p, name, sizeof name);
    printf("#compdef %s\n# Completion for zsh, written by `%s --completion zsh`.\n\n%s%s() {\n  local curcontext=$curcontext state line\n"
           "  _arguments -C '1: :->command' '*:: :->arguments'\n  case $state in\n  command)\n    local -a commands=(\n",
           p->name, p->name, devices_function, name);
    for (int i = 0; i < p->count; i++) {
        printf("      '%s:", p->commands[i].name);
        zsh_text(p->commands[i].help);
        printf("'\n");
    }
    printf("    )\n    _describe %s commands\n    compadd --", p->noun);
    for (int i = 0; i < ALONE; i++)
        printf(" %.*s", (int)strcspn(alone[i][0], " "), alone[i][0]);
    printf("\n    ;;\n  arguments)\n    case $line[1] in\n");
    for (int i = 0; i < p->count; i++)
        cli_visit(p, p->commands[i].name, zsh_command, NULL);
    printf("    --completion) compadd bash zsh ;;\n    esac\n    ;;\n  esac\n}\n\n"
           "if [[ $funcstack[1] == _%s ]]; then %s \"$@\"; else compdef %s %s; fi\n", /* autoloaded, or read by source */
           p->name, name, name, p->name);
}

int cli_completion(const struct cli_program *p, const char *shell) {
    if (!strcmp(shell, "bash"))
        bash(p);
    else if (!strcmp(shell, "zsh"))
        zsh(p);
    else
        fprintf(stderr, "%s --completion: expected bash or zsh, found '%s'\n", p->name, shell);
    return !strcmp(shell, "bash") || !strcmp(shell, "zsh") ? 0 : DFCL_USAGE;
}
