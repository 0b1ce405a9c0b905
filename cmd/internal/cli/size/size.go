// Package size reads and writes numbers of bytes.
package size

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

const units = "KMGTPE"

var errForm = errors.New("want a number of bytes, or one with K, M, G, T, P or E, each 1024 times the one before")

// Parse reads a size such as 4096, 512K, 64M, 10GiB or 1.5T.
func Parse(s string) (int64, error) {
	text := strings.ToUpper(s)
	number, unit := text, int64(1)
	if i := strings.IndexAny(text, units); i >= 0 {
		number = text[:i]
		if suffix := text[i+1:]; suffix != "" && suffix != "B" && suffix != "IB" {
			return 0, errForm
		}
		unit <<= 10 * (strings.IndexByte(units, text[i]) + 1)
	}
	if whole, err := strconv.ParseUint(number, 10, 63); err == nil {
		if whole > uint64(math.MaxInt64/unit) {
			return 0, errors.New("more than 8 EiB")
		}
		return int64(whole) * unit, nil
	}
	// A fraction has to come out as whole bytes.
	whole, frac, ok := strings.Cut(number, ".")
	if !ok || len(number) > 18 || strings.Trim(whole+frac, "0123456789") != "" || whole == "" || frac == "" {
		return 0, errForm
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, errForm
	}
	if f *= float64(unit); f >= math.MaxInt64 {
		return 0, errors.New("more than 8 EiB")
	} else if f == math.Trunc(f) {
		return int64(f), nil
	}
	return 0, errors.New("is not a whole number of bytes")
}

// Format writes a size for people: exact where it is a whole number of a unit, else with one decimal.
func Format(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	exp := -1
	v := float64(n)
	for v >= 1024 && exp < len(units)-1 {
		v /= 1024
		exp++
	}
	if v == math.Trunc(v) {
		return fmt.Sprintf("%.0f %ciB", v, units[exp])
	}
	return fmt.Sprintf("%.1f %ciB", v, units[exp])
}
