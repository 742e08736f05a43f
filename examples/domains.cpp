// Lists the devices, then draws the same noise with a base and several fine-tuned domains in one batch, a row each.
//
//   c++ -std=c++17 domains.cpp -o domains $(pkg-config --cflags --libs difffit-cl)
//   ./domains DEVICE BASE OUT.png DELTA...
#include <difffit-cl/dfcl.h>

#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// Every handle is closed by a function that takes its address.
template <typename T, void (*close)(T **)> struct closer {
    void operator()(T *handle) const { close(&handle); }
};
using context_ptr = std::unique_ptr<dfcl_context, closer<dfcl_context, dfcl_context_destroy>>;
using device_ptr = std::unique_ptr<dfcl_device, closer<dfcl_device, dfcl_device_close>>;
using model_ptr = std::unique_ptr<dfcl_model, closer<dfcl_model, dfcl_model_close>>;

// Errors of the library as exceptions. None may pass through it: its callbacks return a status instead.
struct failure : std::runtime_error {
    dfcl_status status;
    failure(dfcl_status s, const dfcl_error &e) : std::runtime_error(e.msg[0] ? e.msg : dfcl_status_name(s)), status(s) {}
};

template <typename F> void must(F call) {
    dfcl_error err{};
    if (dfcl_status s = call(&err))
        throw failure(s, err);
}

void list_devices(const dfcl_context *context) {
    int n = 0;
    must([&](dfcl_error *e) { return dfcl_device_list(context, nullptr, 0, &n, e); });
    std::vector<dfcl_device_info> list(static_cast<std::size_t>(n));
    must([&](dfcl_error *e) { return dfcl_device_list(context, list.data(), n, &n, e); });
    for (const auto &d : list)
        std::printf("%-10s %s%s%s\n", d.selector, d.name, d.usable ? "" : ", not usable: ", d.problem);
}

void draw(const char *selector, const char *base, const char *out, const std::vector<const char *> &deltas) {
    constexpr int each = 6;
    dfcl_context *c = nullptr;
    must([&](dfcl_error *e) { return dfcl_context_create(&c, nullptr, e); });
    context_ptr context(c);
    list_devices(c);

    dfcl_device *d = nullptr;
    must([&](dfcl_error *e) { return dfcl_device_open(&d, c, selector, e); });
    device_ptr device(d);

    dfcl_model_params params{};
    params.path = base;
    params.max_domains = static_cast<int>(deltas.size());
    dfcl_model *m = nullptr;
    must([&](dfcl_error *e) { return dfcl_model_open(&m, d, &params, e); });
    model_ptr model(m);
    std::vector<int> domains{0}; // the base itself
    for (const char *path : deltas) {
        domains.push_back(0);
        must([&](dfcl_error *e) { return dfcl_model_load_delta(m, path, 1.0f, 0, &domains.back(), e); });
    }

    std::vector<dfcl_sample_request> wanted;
    for (int domain : domains)
        for (int i = 0; i < each; i++) {
            dfcl_sample_request r{};
            r.domain = domain;
            r.class_id = i % dfcl_model_classes(m, domain);
            r.number = static_cast<std::uint32_t>(i); // with the seed it decides the noise, whatever the domain
            wanted.push_back(r);
        }
    const dfcl_model_shape *shape = dfcl_model_get_shape(m);
    const int n = static_cast<int>(wanted.size());
    std::vector<float> x(wanted.size() * static_cast<std::size_t>(shape->channels) * static_cast<std::size_t>(shape->input * shape->input_width));
    dfcl_sample_params how{};
    how.sampler = DFCL_SAMPLER_DDIM;
    how.steps = 20;
    how.cfg = 2;
    how.batch = n; // all domains share each pass
    must([&](dfcl_error *e) { return dfcl_sample(m, &how, wanted.data(), n, x.data(), e); });

    std::vector<std::uint8_t> pixels(x.size());
    dfcl_pixels(x.data(), n, shape->channels, shape->input, shape->input_width, pixels.data());
    std::uint8_t *grid = nullptr;
    int width = 0, height = 0;
    must([&](dfcl_error *e) { return dfcl_grid(c, pixels.data(), n, shape->input, shape->input_width, shape->channels, each, 4, &grid, &width, &height, e); });
    auto free_grid = [c](std::uint8_t *p) { dfcl_free_pixels(c, p); };
    std::unique_ptr<std::uint8_t, decltype(free_grid)> owned(grid, free_grid);
    must([&](dfcl_error *e) { return dfcl_png_write(c, out, grid, width, height, shape->channels, nullptr, e); });
    std::printf("%s: %zu rows of %d\n", out, domains.size(), each);
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 4) {
        std::fprintf(stderr, "usage: %s DEVICE BASE OUT.png DELTA...\n", argv[0]);
        return DFCL_USAGE;
    }
    try {
        draw(argv[1], argv[2], argv[3], std::vector<const char *>(argv + 4, argv + argc));
    } catch (const failure &e) {
        std::fprintf(stderr, "%s\n", e.what());
        return e.status;
    }
    return 0;
}
