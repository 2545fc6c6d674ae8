// Incidence, noise, updates and decoder geometry: bounds, threads, instruction sets. Values are tested from Python.
#include <cmath>

#include "check.hpp"

namespace {

void incidence_stays_in_bounds() {
    const Batch batch = random_batch(21, 7, 9);
    for (const int symmetrise : {DRUSE_SYMMETRISE_NONE, DRUSE_SYMMETRISE_UNION}) {
        const Edges e = build_exactly(batch, {6.0, 1e-3, 12, DRUSE_MODE_EXACT, symmetrise, 0});
        const int64_t mirror = symmetrise == DRUSE_SYMMETRISE_NONE ? 0 : e.count();
        const int64_t directed = mirror + e.count();
        const druse_exec exec = on_cpu(2);
        std::vector<int32_t> degree(static_cast<size_t>(batch.atoms()));
        std::vector<uint32_t> status(static_cast<size_t>(batch.crystals()));
        for (const int64_t capacity : {int64_t(0), int64_t(3), int64_t(64)}) {
            std::vector<int32_t> in_edge(static_cast<size_t>(batch.atoms() * capacity));
            std::vector<int32_t> slot(static_cast<size_t>(directed));
            std::fill(status.begin(), status.end(), 0u);
            CHECK(druse_incidence(&exec, batch.crystals(), batch.offsets.data(), e.edge_offsets.data(), e.src.data(),
                                  e.dst.data(), mirror, capacity, -7, in_edge.data(), slot.data(), degree.data(),
                                  status.data()) == DRUSE_OK);
            int64_t total = 0;
            for (const int32_t d : degree) total += d;
            CHECK(total == directed);
            bool overflow = false;
            for (const uint32_t s : status) overflow |= (s & DRUSE_STATUS_DEGREE_OVERFLOW) != 0;
            CHECK(overflow == (capacity < 12));
            for (int64_t edge = 0; edge < directed; ++edge) {
                const int32_t place = slot[static_cast<size_t>(edge)];
                CHECK(place < 0 || in_edge[static_cast<size_t>(place)] == edge);
            }
        }
        // an edge that leaves its crystal
        std::vector<int32_t> dst = e.dst;
        dst[0] = static_cast<int32_t>(batch.atoms() - 1);
        CHECK(druse_incidence(&exec, batch.crystals(), batch.offsets.data(), e.edge_offsets.data(), e.src.data(),
                              dst.data(), mirror, 0, 0, nullptr, nullptr, degree.data(),
                              status.data()) == DRUSE_ERROR_ARGUMENT);
    }
}

void noise_is_the_same_everywhere() {
    const std::vector<uint64_t> ids = {0, 5, uint64_t(1) << 40};
    const std::vector<int64_t> offsets = {0, 7, 7, 107};
    const druse_noise_key key{42, 3, 9, ids.data(), nullptr};
    for (const int32_t width : {1, 3, 4, 5, 256}) {
        std::vector<float> first(static_cast<size_t>(107 * width)), again = first;
        const druse_exec exec = on_cpu();
        CHECK(druse_normal(&exec, &key, 3, offsets.data(), width, first.data()) == DRUSE_OK);
        for (const int isa : available_isas())
            for (const int threads : {1, 3}) {
                const druse_exec other = on_cpu(threads, isa);
                CHECK(druse_normal(&other, &key, 3, offsets.data(), width, again.data()) == DRUSE_OK);
                CHECK(std::memcmp(first.data(), again.data(), first.size() * sizeof(float)) == 0);
            }
    }
    druse_noise_key wrong = key;
    wrong.purpose = 256;
    float out[12];
    const druse_exec exec = on_cpu();
    CHECK(druse_normal(&exec, &wrong, 3, nullptr, 4, out) == DRUSE_ERROR_ARGUMENT);
    CHECK(druse_normal(&exec, &key, 3, nullptr, 0, out) == DRUSE_ERROR_ARGUMENT);
}

void updates_leave_a_troubled_crystal_alone() {
    const std::vector<uint64_t> ids = {1, 2};
    const druse_noise_key key{1, 6, 0, ids.data(), nullptr};
    const std::vector<int64_t> offsets = {0, 2, 3};
    const std::vector<double> cells = {3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    std::vector<double> frac = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9};
    const std::vector<double> before = frac;
    std::vector<float> score(9, 0.0f), logits(3 * 4, 0.0f);
    std::vector<int32_t> species(3, 1);
    std::vector<uint32_t> status(2, 0);
    score[4] = std::nanf("");
    const druse_exec exec = on_cpu();
    CHECK(druse_langevin(&exec, &key, 2, offsets.data(), cells.data(), 0.1, 0.1, nullptr, score.data(), nullptr, 4,
                         logits.data(), nullptr, frac.data(), species.data(), status.data()) == DRUSE_OK);
    CHECK(status[0] == DRUSE_STATUS_NON_FINITE && status[1] == DRUSE_STATUS_SINGULAR);
    CHECK(frac == before);

    std::vector<float> z(2 * 5, 1.0f), eps(2 * 5, 0.5f);
    status.assign(2, 0);
    eps[7] = INFINITY;
    CHECK(druse_ddpm(&exec, &key, 2, 5, 1.0, 0.5, 0.0, eps.data(), nullptr, z.data(), status.data()) == DRUSE_OK);
    CHECK(status[0] == 0 && status[1] == DRUSE_STATUS_NON_FINITE);
    CHECK(z[0] == 0.75f && z[5] == 1.0f);
}

void geometry_is_the_same_everywhere() {
    const Batch batch = random_batch(22, 5, 9);
    const Edges e = build_exactly(batch, {6.0, 1e-3, 12, DRUSE_MODE_EXACT, DRUSE_SYMMETRISE_UNION, 0});
    const int64_t n = batch.atoms(), capacity = 40, mirror = e.count();
    std::vector<int32_t> in_edge(static_cast<size_t>(n * capacity)), degree(static_cast<size_t>(n));
    std::vector<uint32_t> status(static_cast<size_t>(batch.crystals()));
    const druse_exec exec = on_cpu();
    CHECK(druse_incidence(&exec, batch.crystals(), batch.offsets.data(), e.edge_offsets.data(), e.src.data(),
                          e.dst.data(), mirror, capacity, 0, in_edge.data(), nullptr, degree.data(),
                          status.data()) == DRUSE_OK);
    for (const int32_t spherical : {1, 2, 7}) {
        std::vector<std::vector<float>> results;
        for (const int isa : available_isas()) {
            const druse_exec other = on_cpu(isa, isa);
            std::vector<float> radial(static_cast<size_t>(e.count() * 19)), forces(static_cast<size_t>(3 * n));
            std::vector<float> legendre(static_cast<size_t>(n * capacity * spherical * capacity), NAN);
            std::vector<float> force(static_cast<size_t>(2 * mirror), 0.25f);
            CHECK(druse_radial_basis(&other, e.count(), e.distance.data(), 6.0, 19, radial.data()) == DRUSE_OK);
            CHECK(druse_legendre(&other, n, capacity, spherical, in_edge.data(), degree.data(), mirror, e.unit.data(),
                                 legendre.data()) == DRUSE_OK);
            CHECK(druse_force_sum(&other, n, capacity, in_edge.data(), degree.data(), mirror, e.unit.data(),
                                  force.data(), forces.data()) == DRUSE_OK);
            radial.insert(radial.end(), legendre.begin(), legendre.end());
            radial.insert(radial.end(), forces.begin(), forces.end());
            for (const float value : radial) CHECK(std::isfinite(value));
            results.push_back(radial);
        }
        for (const auto &result : results)
            CHECK(std::memcmp(result.data(), results[0].data(), result.size() * sizeof(float)) == 0);
    }
}

// Every buffer exactly as large as the header says, whole and partial blocks of rows.
void the_prior_stays_in_bounds() {
    const std::vector<int32_t> widths = {64, 32, 32, 64, 96, 96};
    const int32_t latent = 96, n_steps = 3, total = 384;
    std::vector<std::vector<float>> packed;
    std::vector<const float *> weights;
    for (size_t k = 0; k < widths.size(); ++k) {
        const int32_t n_in = k == 0 ? latent : widths[k - 1];
        const std::vector<float> matrix(static_cast<size_t>(n_in * widths[k]), 0.01f);
        packed.emplace_back(matrix.size());
        CHECK(druse_pack(n_in, widths[k], matrix.data(), packed.back().data()) == DRUSE_OK);
    }
    for (const auto &matrix : packed) weights.push_back(matrix.data());
    const std::vector<float> steps(static_cast<size_t>(n_steps * total), 0.5f);
    const druse_residual_mlp net = {6, latent, widths.data(), weights.data(), steps.data(), n_steps, 0};
    const std::vector<double> scale(n_steps, 1.0), eps_scale(n_steps, 0.1), noise_scale(n_steps, 0.2);
    for (const int64_t n : {0, 1, 13, 48, 101}) {
        const std::vector<uint64_t> ids(static_cast<size_t>(n + 1), 7);
        const druse_noise_key key = {1, 2, 0, ids.data(), nullptr};
        std::vector<std::vector<float>> results;
        for (const int threads : {1, 3})
            for (const int isa : {DRUSE_ISA_BASELINE, DRUSE_ISA_AVX2, DRUSE_ISA_AVX512}) {
                const druse_exec exec = {DRUSE_CPU, threads, isa, 0, nullptr};
                std::vector<float> z(static_cast<size_t>(n * latent), 0.3f), eps(z.size());
                const std::vector<float> terms(static_cast<size_t>(n * total), -0.1f);
                std::vector<uint32_t> status(static_cast<size_t>(n), 0);
                const int32_t result = druse_prior_eps(&exec, &net, n, 1, z.data(), terms.data(), eps.data());
                if (result == DRUSE_ERROR_UNSUPPORTED) continue;
                CHECK(result == DRUSE_OK);
                CHECK(druse_prior_chain(&exec, &net, &key, n, 2, 0, scale.data(), eps_scale.data(), noise_scale.data(),
                                        terms.data(), z.data(), status.data()) == DRUSE_OK);
                for (const uint32_t word : status) CHECK(word == 0);
                z.insert(z.end(), eps.begin(), eps.end());
                results.push_back(z);
            }
        for (const auto &result : results)
            CHECK(result.empty() || std::memcmp(result.data(), results[0].data(), result.size() * sizeof(float)) == 0);
    }
}

// Tables, features and results exactly as large as the header says, atoms without edges among them.
void sums_over_paths_stay_in_bounds() {
    const Batch batch = random_batch(23, 5, 9);
    const Edges e = build_exactly(batch, {6.0, 1e-3, 12, DRUSE_MODE_EXACT, DRUSE_SYMMETRISE_UNION, 0});
    const int64_t n = batch.atoms(), mirror = e.count(), directed = 2 * mirror, capacity = 40;
    std::vector<int32_t> in_edge(static_cast<size_t>(n * capacity)), degree(static_cast<size_t>(n + 1), 0);
    std::vector<uint32_t> status(static_cast<size_t>(batch.crystals()));
    const druse_exec exec = on_cpu();
    CHECK(druse_incidence(&exec, batch.crystals(), batch.offsets.data(), e.edge_offsets.data(), e.src.data(),
                          e.dst.data(), mirror, capacity, -1, in_edge.data(), nullptr, degree.data(),
                          status.data()) == DRUSE_OK);
    in_edge.resize(in_edge.size() + static_cast<size_t>(capacity), -1);  // one atom more, alone
    const druse_paths paths = {n + 1,          directed, capacity, capacity,      in_edge.data(), degree.data(),
                               in_edge.data(), degree.data(), nullptr, nullptr, e.unit.data(),  mirror};
    const int32_t spherical = 3, basis = 5, channels = 48;
    const auto sized = [](int64_t size) { return std::vector<float>(static_cast<size_t>(size), 0.25f); };
    std::vector<std::vector<float>> results;
    for (const int isa : available_isas()) {
        const druse_exec other = on_cpu(3, isa);
        const auto x = sized(directed * channels), radial = sized(mirror * basis * spherical);
        const auto factors = sized(directed * spherical * basis), weight = sized(spherical * basis * channels);
        const auto wide = sized(directed * basis * channels);
        auto out = wide, of_radial = sized(directed * basis * spherical), of_x = x, sums = x, of_weight = weight;
        auto also_of_x = x;
        CHECK(druse_triplet_sum(&other, &paths, spherical, basis, channels, radial.data(), x.data(), out.data()) ==
              DRUSE_OK);
        CHECK(druse_triplet_sum_gradient(&other, &paths, spherical, basis, channels, radial.data(), x.data(),
                                         wide.data(), of_radial.data(), of_x.data()) == DRUSE_OK);
        CHECK(druse_path_sum(&other, &paths, spherical, basis, channels, factors.data(), weight.data(), x.data(),
                             sums.data()) == DRUSE_OK);
        CHECK(druse_path_sum_gradient(&other, &paths, spherical, basis, channels, factors.data(), weight.data(),
                                      x.data(), x.data(), of_weight.data(), also_of_x.data()) == DRUSE_OK);
        for (const auto *more : {&of_radial, &of_x, &sums, &of_weight, &also_of_x})
            out.insert(out.end(), more->begin(), more->end());
        results.push_back(out);
    }
    for (const auto &result : results)
        CHECK(std::memcmp(result.data(), results[0].data(), result.size() * sizeof(float)) == 0);
}

// Weights of small widths, every array exactly as large as the header says, and bins that fill no tile.
void the_score_network_stays_in_bounds() {
    const int32_t atom = 32, edge = 64, triplet = 32, bilinear = 96, rbf = 5, cbf = 3, radial = 9, spherical = 2;
    const int32_t blocks = 2, species = 7, levels = 4, kept = 3 * rbf + cbf * spherical;
    std::vector<std::vector<float>> arrays;
    std::vector<float> sharpness;
    const auto packed = [&](int32_t n_in, int32_t n_out, float activated) {
        const std::vector<float> matrix(static_cast<size_t>(n_in * n_out), 0.01f);
        arrays.emplace_back(static_cast<size_t>(n_in * ((n_out + DRUSE_PANEL - 1) / DRUSE_PANEL) * DRUSE_PANEL));
        CHECK(druse_pack(n_in, n_out, matrix.data(), arrays.back().data()) == DRUSE_OK);
        sharpness.push_back(activated);
    };
    const auto plain = [&](int32_t size) {
        arrays.emplace_back(static_cast<size_t>(size), 0.02f);
        sharpness.push_back(0.0f);
    };
    const auto head = [&] {
        for (int k = 0; k < 3; ++k) packed(edge, edge, 1.0f);
        packed(edge, rbf, 0.0f);
    };
    packed(radial, kept + edge, 0.0f), plain(species * atom), plain(levels * atom), packed(atom, 2 * edge, 0.0f), head();
    for (int b = 0; b < blocks; ++b) {
        packed(edge, edge, 1.0f), packed(rbf, edge, 0.0f), packed(edge, triplet, 1.0f);
        packed(cbf * triplet, bilinear, 0.0f), packed(edge, edge, 1.0f);
        packed(bilinear, edge, 1.4f), packed(bilinear, edge, 1.4f);
        for (int k = 0; k < 4; ++k) packed(edge, edge, 1.0f);  // before and after the skip
        packed(rbf, edge, 0.0f), packed(edge, atom, 1.0f), packed(atom, atom, 1.0f), packed(atom, atom, 1.0f);
        packed(atom, 2 * edge, 0.0f), packed(edge, edge, 1.0f), packed(edge, edge, 1.0f), packed(edge, edge, 1.0f);
        head();
    }
    packed(atom, species, 0.0f), plain(species);
    std::vector<const float *> weights;
    for (const auto &array : arrays) weights.push_back(array.data());
    const std::vector<float> factors(static_cast<size_t>(3 * blocks), 0.5f);
    druse_gemnet net = {atom, edge,   triplet, bilinear, rbf,    cbf, radial, spherical, blocks,          1,
                        1,    1,      1,       species,  levels, 0,   6.0,    weights.data(), sharpness.data(), factors.data()};

    for (const int n_crystals : {1, 6}) {
        const Batch batch = random_batch(24, n_crystals, 9);
        const Edges e = build_exactly(batch, {6.0, 1e-3, 12, DRUSE_MODE_EXACT, DRUSE_SYMMETRISE_UNION, 0});
        const int64_t n = batch.atoms(), mirror = e.count(), capacity = 40;
        std::vector<int32_t> in_edge(static_cast<size_t>(n * capacity)), degree(static_cast<size_t>(n));
        std::vector<uint32_t> status(static_cast<size_t>(batch.crystals()));
        const druse_exec exec = on_cpu();
        CHECK(druse_incidence(&exec, batch.crystals(), batch.offsets.data(), e.edge_offsets.data(), e.src.data(),
                              e.dst.data(), mirror, capacity, -1, in_edge.data(), nullptr, degree.data(),
                              status.data()) == DRUSE_OK);
        std::vector<int32_t> crystal, types(static_cast<size_t>(n), species), level(static_cast<size_t>(n_crystals), 3);
        for (int32_t b = 0; b < n_crystals; ++b)
            crystal.insert(crystal.end(), static_cast<size_t>(batch.offsets[b + 1] - batch.offsets[b]), b);
        const std::vector<float> latent(static_cast<size_t>(n_crystals * atom), 0.1f);
        druse_gemnet_batch bin = {n_crystals,      n,           mirror,          capacity,       mirror,
                                  e.src.data(),    e.dst.data(), e.distance.data(), e.unit.data(), in_edge.data(),
                                  degree.data(),   crystal.data(), types.data(),  latent.data(), level.data()};
        std::vector<std::vector<float>> results;
        for (const int isa : available_isas()) {
            const druse_exec other = on_cpu(1, isa);
            std::vector<float> score(static_cast<size_t>(3 * n)), logits(static_cast<size_t>(n * species));
            CHECK(druse_gemnet_score(&other, &net, &bin, score.data(), logits.data()) == DRUSE_OK);
            score.insert(score.end(), logits.begin(), logits.end());
            for (const float value : score) CHECK(std::isfinite(value));
            results.push_back(score);
        }
        for (const auto &result : results)
            CHECK(std::memcmp(result.data(), results[0].data(), result.size() * sizeof(float)) == 0);
        std::vector<float> score(static_cast<size_t>(3 * n)), logits(static_cast<size_t>(n * species));
        types[0] = species + 1;
        CHECK(druse_gemnet_score(&exec, &net, &bin, score.data(), logits.data()) == DRUSE_ERROR_ARGUMENT);
        types[0] = 1, net.edge = 48;
        CHECK(druse_gemnet_score(&exec, &net, &bin, score.data(), logits.data()) == DRUSE_ERROR_ARGUMENT);
        net.edge = edge, bin.mirror = mirror - 1;
        CHECK(druse_gemnet_score(&exec, &net, &bin, score.data(), logits.data()) == DRUSE_ERROR_ARGUMENT);
    }
}

}  // namespace

void test_operations() {
    incidence_stays_in_bounds();
    noise_is_the_same_everywhere();
    updates_leave_a_troubled_crystal_alone();
    geometry_is_the_same_everywhere();
    the_prior_stays_in_bounds();
    sums_over_paths_stay_in_bounds();
    the_score_network_stays_in_bounds();
}
