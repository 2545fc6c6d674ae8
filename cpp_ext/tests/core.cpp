// The mathematics that host and device share, against libm in float64 and against published numbers.
#include "core/basis.hpp"
#include "core/cell.hpp"
#include "core/philox.hpp"

#include <cmath>
#include <cstdlib>

#include "check.hpp"

namespace {

// Random123's published answers for philox4x32-10.
void philox_known_answers() {
    struct Case {
        uint32_t counter[4], key[2], expected[4];
    };
    const Case cases[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (const Case &c : cases) {
        uint32_t out[4];
        druse_philox(c.counter, c.key, out);
        CHECK(std::memcmp(out, c.expected, sizeof out) == 0);
    }
}

void elementary_functions() {
    double log_error = 0, exp_error = 0, circle_error = 0;
    std::mt19937 random(7);
    std::uniform_real_distribution<double> exponent(-33.0, 3.0), negative(-86.0, 0.0);
    std::uniform_int_distribution<uint32_t> word;
    for (int i = 0; i < 200000; ++i) {
        const float x = static_cast<float>(std::exp2(exponent(random)));
        log_error = std::fmax(log_error, std::fabs(druse::log_f32(x) - std::log(double(x))) /
                                             std::fmax(1e-3, std::fabs(std::log(double(x)))));
        const float y = static_cast<float>(negative(random));
        exp_error = std::fmax(exp_error, std::fabs(druse::exp_f32(y) / std::exp(double(y)) - 1.0));
        const uint32_t turn = word(random);
        float c, s;
        druse::cos_sin_turn(turn, &c, &s);
        const double angle = 2.0 * 3.14159265358979323846 * turn / 4294967296.0;
        circle_error = std::fmax(circle_error, std::fmax(std::fabs(c - std::cos(angle)), std::fabs(s - std::sin(angle))));
    }
    CHECK(log_error < 3e-7);
    CHECK(exp_error < 3e-7);
    CHECK(circle_error < 2e-7);
    CHECK(druse::log_f32(1.0f) == 0.0f);
    CHECK(druse::exp_f32(0.0f) == 1.0f);
    CHECK(druse::exp_f32(-88.0f) == 0.0f);
    float first, second;
    druse::normal_pair(0xffffffffu, 0, &first, &second);  // u rounds to 1
    CHECK(first == 0.0f && second == 0.0f);
    druse::normal_pair(0, 0, &first, &second);
    CHECK(first > 6.7f && first < 6.8f);
}

void wrapping() {
    CHECK(druse::wrap(1.0) == 0.0);
    CHECK(druse::wrap(-1e-20) == 0.0);
    CHECK(!std::signbit(druse::wrap(-0.0)));
    CHECK(druse::wrap(-0.25) == 0.75);
    CHECK(druse::wrap(1e4 + 0.5) == 0.5);
}

// A reduced cell spans the same lattice with the same volume, and has no shorter vector than its rows.
void reduction() {
    std::mt19937 random(11);
    std::uniform_real_distribution<double> entry(-6.0, 6.0);
    std::uniform_int_distribution<int> shear(-4, 4);
    for (int trial = 0; trial < 2000; ++trial) {
        double cell[9];
        for (double &x : cell) x = entry(random);
        for (int k = 0; k < 3; ++k) {
            cell[3 + k] += shear(random) * cell[k];
            cell[6 + k] += shear(random) * cell[3 + k];
        }
        const druse::ReducedCell r = druse::reduce_cell(cell);
        double normal[3];
        druse::cross3(cell + 3, cell + 6, normal);
        const double volume = std::fabs(druse::dot3(cell, normal));
        if (volume < 1e-3) continue;
        CHECK(r.valid);
        druse::cross3(r.rows + 3, r.rows + 6, normal);
        CHECK(std::fabs(std::fabs(druse::dot3(r.rows, normal)) / volume - 1.0) < 1e-9);
        for (int i = 0; i < 3; ++i)
            for (int j = 0; j < 3; ++j) {
                double product = 0;
                for (int k = 0; k < 3; ++k) product += r.transform[3 * i + k] * r.inverse_transform[3 * k + j];
                CHECK(product == (i == j ? 1.0 : 0.0));
            }
        const double longest = druse::dot3(r.rows + 6, r.rows + 6);
        for (int a = -2; a <= 2; ++a)
            for (int b = -2; b <= 2; ++b) {
                double v[3];
                for (int k = 0; k < 3; ++k) v[k] = a * r.rows[k] + b * r.rows[3 + k] + r.rows[6 + k];
                CHECK(druse::dot3(v, v) >= longest * (1.0 - 1e-9));
            }
    }
    const double flat[9] = {1, 0, 0, 0, 1, 0, 1, 1, 0}, zero[9] = {}, thin[9] = {5, 0, 0, 0, 5, 0, 0, 0, 0.005};
    CHECK(!druse::reduce_cell(flat).valid);
    CHECK(!druse::reduce_cell(zero).valid);
    CHECK(!druse::reduce_cell(thin).valid);
}

void polynomials() {
    for (int i = 0; i <= 1000; ++i) {
        const double x = i / 500.0 - 1.0;
        float p[7] = {1.0f, static_cast<float>(x)};
        for (int l = 2; l < 7; ++l) p[l] = druse::legendre_next(l, static_cast<float>(x), p[l - 1], p[l - 2]);
        const double p4 = (35 * std::pow(x, 4) - 30 * x * x + 3) / 8;
        const double p6 = (231 * std::pow(x, 6) - 315 * std::pow(x, 4) + 105 * x * x - 5) / 16;
        CHECK(std::fabs(p[4] - p4) < 1e-6 && std::fabs(p[6] - p6) < 1e-6);
        const double d = i / 1000.0;
        const double envelope = 1 - 21 * std::pow(d, 5) + 35 * std::pow(d, 6) - 15 * std::pow(d, 7);
        CHECK(std::fabs(druse::envelope(static_cast<float>(d)) - envelope) < 5e-7);
    }
    CHECK(druse::envelope(1.0f) == 0.0f && druse::envelope(1.5f) == 0.0f);
}

}  // namespace

void test_core() {
    philox_known_answers();
    elementary_functions();
    wrapping();
    reduction();
    polynomials();
}
