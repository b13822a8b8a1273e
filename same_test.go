package idem

import (
	"math/big"
	"strings"
	"testing"
)

// TestNumbersByValue compares the form of numbers with exact fractions.
func TestNumbersByValue(t *testing.T) {
	numbers := []string{
		"0", "-0", "0.0", "-0.0", "-0.000000000000000000", "-0e5", "0E-9", "1", "1.0", "1e0", "10e-1", "0.1e+1", "-1", "-1.00", "10", "1e1", "100E-1", "1.5", "15e-1", "0.15E1", "1.50", "999999999999999", "999999999999999.0",
		"9999999999999999", "9007199254740992", "9007199254740993", "9007199254740993.0", "1e15", "1000000000000000", "1e14", "100000000000000", "-100000000000000", "-1e14", "1e300", "1" + strings.Repeat("0", 300),
		"0.000000000000000000001", "1e-21", "0.0000000000001", "1e-13", "0.00000000000001", "1e-14", "123456789012345678901234567890", "123456789012345678901234567890.0", "12345678901234567890123456789e1", "1.1", "1.10000000000000000000000000001",
		"1.10", "0.05", "5e-2", "0.050", "-0.5", "-5e-1", "12345678.123456", "12345678.1234560", "12345678123456e-6", "12345678.1234567", "123456781234567e-7", "100.001", "100001e-3", "100.0010", "0.30000000000000004", "30000000000000004e-17",
	}
	for _, a := range numbers {
		for _, around := range []string{"%", "[%,%]", `{"a.0":%}`, `[%,"%"]`} {
			write := func(number string) string {
				return string(canonical([]byte(strings.ReplaceAll(around, "%", number)), nil))
			}
			for _, b := range numbers {
				x, _ := new(big.Rat).SetString(a)
				y, _ := new(big.Rat).SetString(b)
				want := x.Cmp(y) == 0
				if strings.Contains(around, `"%"`) {
					want = a == b
				}
				if (write(a) == write(b)) != want {
					t.Errorf("%s is %s and %s is %s", a, write(a), b, write(b))
				}
			}
			if again := string(canonical([]byte(write(a)), nil)); again != write(a) || again == "" {
				t.Errorf("%s is %s and that is %s", a, write(a), again)
			}
		}
	}
}
