// The radius graph: nothing written past a buffer, a status for everything, the same bytes everywhere.
#include <cmath>
#include <limits>

#include "check.hpp"

namespace {

const int32_t kAll = std::numeric_limits<int32_t>::max();

druse_graph_options options(int mode, int symmetrise, int32_t k = 20, double cutoff = 6.0, double tolerance = 1e-3) {
    return druse_graph_options{cutoff, tolerance, k, mode, symmetrise, 0};
}

const std::vector<double> kCube = {4, 0, 0, 0, 4, 0, 0, 0, 4};

void everywhere_the_same() {
    const Batch batch = random_batch(1, 24, 12);
    for (const int mode : {DRUSE_MODE_EXACT, DRUSE_MODE_UPSTREAM})
        for (int symmetrise = 0; symmetrise < 3; ++symmetrise)
            for (const double tolerance : {1e-3, -1.0}) {
                const druse_graph_options o = options(mode, symmetrise, 20, 6.0, tolerance);
                const Edges first = build_exactly(batch, o);
                CHECK(first.result == DRUSE_OK && first.count() > 0);
                for (const int isa : available_isas())
                    for (const int threads : {1, 2, 4}) CHECK(build_exactly(batch, o, on_cpu(threads, isa)) == first);
            }
}

void capacities_one_short() {
    const Batch batch = random_batch(2, 9, 8);
    for (int symmetrise = 0; symmetrise < 3; ++symmetrise) {
        const druse_graph_options o = options(DRUSE_MODE_EXACT, symmetrise);
        const Edges full = build_exactly(batch, o);
        for (int64_t capacity = 0; capacity <= full.count(); capacity += full.count() / 7) {
            const Edges part = build(batch, o, capacity, on_cpu(2));
            CHECK(part.result == DRUSE_OK && part.count() <= capacity);
            CHECK(part.edge_counts == full.edge_counts);
            for (int64_t b = 0; b < batch.crystals(); ++b) {
                const size_t c = static_cast<size_t>(b);
                const bool overflow = (part.status[c] & DRUSE_STATUS_EDGE_OVERFLOW) != 0;
                CHECK(part.edge_offsets[c + 1] - part.edge_offsets[c] == (overflow ? 0 : full.edge_counts[c]));
            }
        }
        const Edges short_by_one = build(batch, o, full.count() - 1, on_cpu());
        CHECK((short_by_one.status.back() & DRUSE_STATUS_EDGE_OVERFLOW) != 0 || full.edge_counts.back() == 0);
    }
}

void troubled_crystals() {
    const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
    const Batch good = random_batch(3, 1, 6);
    Batch batch;
    const std::vector<double> pair = {0, 0, 0, 0.5, 0.5, 0.5};
    batch.add(kCube, {0, 0, nan});                                 // 0
    batch.add({4, 0, 0, 0, infinity, 0, 0, 0, 4}, pair);           // 1
    batch.add(kCube, {});                                          // 2 empty
    batch.add({4, 0, 0, 8, 0, 0, 0, 0, 4}, pair);                  // 3 flat
    batch.add({0, 0, 0, 0, 0, 0, 0, 0, 0}, pair);                  // 4 zero
    batch.add(kCube, {0.1, 0.1, 0.1, 0.1, 0.1, 0.1});              // 5 coincident
    batch.add({90, 0, 0, 0, 90, 0, 0, 0, 90}, pair);               // 6 isolated
    batch.add({0.02, 0, 0, 0, 0.02, 0, 0, 0, 0.02}, {0, 0, 0});    // 7 too many images
    batch.add(kCube, {1e9, 0, 0});                                 // 8 too far to resolve
    batch.add(kCube, {1.0, -0.0, 1e4 + 0.5, -1e4, 3.5, -1e-20});   // 9 unwrapped, fine
    batch.add({-4, 0, 0, 0, 4, 0, 0, 0, 4}, pair);                 // 10 left-handed, fine
    for (const int mode : {DRUSE_MODE_EXACT, DRUSE_MODE_UPSTREAM})
        for (int symmetrise = 0; symmetrise < 3; ++symmetrise)
            for (const int32_t k : {1, 20, kAll}) {
                const Edges e = build_exactly(batch, options(mode, symmetrise, k), on_cpu(2));
                CHECK(e.result == DRUSE_OK);
                CHECK(e.status[0] == DRUSE_STATUS_NON_FINITE && e.status[1] == DRUSE_STATUS_NON_FINITE);
                CHECK(e.status[2] == DRUSE_STATUS_EMPTY);
                CHECK((e.status[5] & DRUSE_STATUS_COINCIDENT) != 0);
                CHECK((e.status[6] & DRUSE_STATUS_ISOLATED) != 0);
                CHECK(e.status[8] == DRUSE_STATUS_NON_FINITE);
                CHECK(e.status[9] == 0 || mode == DRUSE_MODE_UPSTREAM);
                CHECK(e.status[10] == 0);
                if (mode == DRUSE_MODE_EXACT) {
                    CHECK(e.status[3] == DRUSE_STATUS_SINGULAR && e.status[4] == DRUSE_STATUS_SINGULAR);
                    CHECK(e.status[7] == DRUSE_STATUS_TOO_MANY_IMAGES);
                }
            }
}

void shells_stay_whole() {
    Batch fcc;
    fcc.add({0, 2, 2, 2, 0, 2, 2, 2, 0}, {0, 0, 0});
    CHECK(build_exactly(fcc, options(DRUSE_MODE_EXACT, DRUSE_SYMMETRISE_NONE)).count() == 42);
    CHECK(build_exactly(fcc, options(DRUSE_MODE_EXACT, DRUSE_SYMMETRISE_UNION)).count() == 21);
    CHECK(build_exactly(fcc, options(DRUSE_MODE_EXACT, DRUSE_SYMMETRISE_NONE, 20, 6.0, -1.0)).count() == 20);
    CHECK(build_exactly(fcc, options(DRUSE_MODE_UPSTREAM, DRUSE_SYMMETRISE_NONE)).count() == 20);
    // the second shell lies exactly at the cutoff
    CHECK(build_exactly(fcc, options(DRUSE_MODE_EXACT, DRUSE_SYMMETRISE_NONE, kAll, 4.0)).count() == 18);
}

void crowded() {
    Batch batch;
    batch.add({1.1, 0, 0, 0, 1.1, 0, 0, 0, 1.1}, {0, 0, 0});
    const Edges e = build_exactly(batch, options(DRUSE_MODE_EXACT, DRUSE_SYMMETRISE_NONE, kAll, 8.0));
    CHECK(e.count() > 1500 && e.status[0] == 0);
    batch = random_batch(5, 3, 200);
    CHECK(build_exactly(batch, options(DRUSE_MODE_EXACT, DRUSE_SYMMETRISE_UNION, 40, 9.0)).result == DRUSE_OK);
}

void refused_arguments() {
    const Batch batch = random_batch(6, 2, 4);
    const auto result = [&](const druse_graph_options &o, const druse_exec &exec = on_cpu()) {
        return build(batch, o, 0, exec).result;
    };
    CHECK(result(options(2, 0)) == DRUSE_ERROR_ARGUMENT);
    CHECK(result(options(0, 3)) == DRUSE_ERROR_ARGUMENT);
    CHECK(result(options(0, 0, 0)) == DRUSE_ERROR_ARGUMENT);
    CHECK(result(options(0, 0, 20, 0.0)) == DRUSE_ERROR_ARGUMENT);
    CHECK(result(options(0, 0, 20, std::nan(""))) == DRUSE_ERROR_ARGUMENT);
    CHECK(result(options(0, 0, 20, 6.0, std::nan(""))) == DRUSE_ERROR_ARGUMENT);
    CHECK(result(options(0, 0), on_cpu(-1)) == DRUSE_ERROR_ARGUMENT);
    CHECK(result(options(0, 0), on_cpu(1, 9)) == DRUSE_ERROR_ARGUMENT);
    Batch falling = batch;
    falling.offsets = {0, 5, 4};
    CHECK(build(falling, options(0, 0), 0, on_cpu()).result == DRUSE_ERROR_ARGUMENT);
    CHECK(druse_radius_graph(nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr) == DRUSE_ERROR_ARGUMENT);
    if (druse_has_cuda() == 0) {
        druse_exec cuda = on_cpu();
        cuda.device = DRUSE_CUDA;
        CHECK(result(options(0, 0), cuda) == DRUSE_ERROR_UNSUPPORTED);
    }
}

}  // namespace

void test_graph() {
    everywhere_the_same();
    capacities_one_short();
    troubled_crystals();
    shells_stay_whole();
    crowded();
    refused_arguments();
}
