package idem

import (
	"net/http"
	"runtime"
	"strings"
	"testing"
)

// TestBracketsCostNoMoreThanReading has bodies of 1 MiB that are hard for a JSON pointer. What is gone through once more is copied
// once more, and what is done for each bracket takes memory for each: so memory is counted, which does not depend on the machine
// as time does.
func TestBracketsCostNoMoreThanReading(t *testing.T) {
	const size = 1 << 20
	h := newTestHandler(t, func(c *Config) { c.MaxRequestBodyBytes = 2 * size })
	text, brackets := `"`+strings.Repeat("x", size)+`"`, "["+strings.Repeat("[],", size/3)+"1]"
	deep := func(inside string) string { return strings.Repeat(`{"a":`, 32) + inside + strings.Repeat("}", 32) }
	for name, body := range map[string]string{
		"opening brackets": strings.Repeat("[", size), "pairs of brackets": strings.Repeat("[],", size/3), "an array of arrays": brackets,
		"a text in 32 objects": deep(text), "arrays in 32 objects": deep(brackets), "an object among others": `{"b":` + deep(brackets) + `,"a":` + deep(text) + "}",
	} {
		for _, pointer := range []string{"/a", "/0", strings.Repeat("/a", 32), strings.Repeat("/0", 32)} {
			s := parseSource("json:" + pointer)
			r := &http.Request{Header: http.Header{"Content-Type": {"application/json"}}}
			var state int
			var bytes, pieces uint64
			for try := 0; try == 0 || try < 10 && (bytes > 20*size || pieces > 10_000); try++ { // others in this process allocate too
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				_, state = valueOf(h, s, r, []byte(body))
				runtime.ReadMemStats(&after)
				bytes, pieces = after.TotalAlloc-before.TotalAlloc, after.Mallocs-before.Mallocs
			}
			if bytes > 20*size || pieces > 10_000 {
				t.Errorf("json:%s in %s: %d bytes in %d pieces", pointer, name, bytes, pieces)
			}
			if want := name == "a text in 32 objects" && len(pointer) == 64 && pointer[1] == 'a'; (state == present) != want {
				t.Errorf("json:%s in %s: state %d", pointer, name, state)
			}
		}
	}
}
