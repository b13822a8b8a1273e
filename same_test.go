package idem

import (
	"math/big"
	"strings"
	"testing"
)

// TestNumbersByValue compares canonicalNumber with exact fractions.
func TestNumbersByValue(t *testing.T) {
	numbers := []string{
		"0", "-0", "0.0", "-0e5", "0E-9", "1", "1.0", "1e0", "10e-1", "0.1e+1", "-1", "-1.00", "10", "1e1", "100E-1", "1.5", "15e-1", "0.15E1", "1.50", "999999999999999", "999999999999999.0",
		"9999999999999999", "9007199254740992", "9007199254740993", "9007199254740993.0", "1e15", "1000000000000000", "100000000000000", "-100000000000000", "-1e14", "1e300", "1" + strings.Repeat("0", 300),
		"0.000000000000000000001", "1e-21", "123456789012345678901234567890", "123456789012345678901234567890.0", "12345678901234567890123456789e1", "1.1", "1.10000000000000000000000000001",
	}
	for _, a := range numbers {
		for _, b := range numbers {
			x, _ := new(big.Rat).SetString(a)
			y, _ := new(big.Rat).SetString(b)
			if (canonicalNumber(a) == canonicalNumber(b)) != (x.Cmp(y) == 0) {
				t.Errorf("%s is %s and %s is %s", a, canonicalNumber(a), b, canonicalNumber(b))
			}
		}
		if again := canonicalNumber(canonicalNumber(a)); again != canonicalNumber(a) {
			t.Errorf("%s is %s and that is %s", a, canonicalNumber(a), again)
		}
	}
}
