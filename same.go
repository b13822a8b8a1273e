package idem

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// comparison says what makes two requests with one key the same, where that is not the default.
type comparison struct {
	query, mediaType, conditions bool
	body                         bool // its bytes, or as JSON
	asJSON                       bool
	ignored                      []*place // of the kinds query, form and json
}

// longestCompared bounds, in bytes, what is compared as values and not as bytes. As values, a body takes some twenty times its
// size in memory.
const longestCompared = 256 << 10

// countedHeaders are the headers in a fingerprint besides Content-Type.
var countedHeaders = []string{"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range", "Range"}

// fingerprintAs is fingerprint for a comparison of another kind. It takes the fingerprint of a request that has only what counts.
func fingerprintAs(h *handler, c *comparison, r *http.Request, identity string, body []byte) string {
	counted := &http.Request{URL: &url.URL{}, Header: http.Header{}}
	if c.query {
		counted.URL.RawQuery = withoutFields(r.URL.RawQuery, c.ignored, kindQuery)
	}
	if c.conditions {
		for _, name := range countedHeaders {
			if r.Header[name] != nil {
				counted.Header[name] = r.Header[name]
			}
		}
	}
	types := r.Header["Content-Type"]
	if types != nil {
		counted.Header["Content-Type"] = types
	}
	head, boundary := fingerprintHead(counted, identity)
	if !c.mediaType {
		delete(counted.Header, "Content-Type")
		head, _ = fingerprintHead(counted, identity)
	}
	if !c.body {
		return sumBody(h, head, "", nil)
	}
	return sumBody(h, head, boundary, comparedBody(h, c, r, body))
}

// comparedBody returns what is compared of a body. That is the body itself, unless it is a form with fields to ignore, or JSON.
func comparedBody(h *handler, c *comparison, r *http.Request, body []byte) []byte {
	isForm := mediaName(r) == formType
	switch {
	case len(body) == 0:
		return body
	case len(body) > longestCompared:
		return body
	case len(r.Header["Content-Type"]) > 1:
		return body
	case !readable(h, r, body):
		return body
	case isForm:
		return []byte(withoutFields(string(body), c.ignored, kindForm))
	case !c.asJSON:
		return body
	}
	data, isJSON := jsonBody(h, r, body)
	if !isJSON {
		return body
	}
	values := canonical(data, c.ignored)
	if values == nil {
		return body
	}
	return values
}

// withoutFields returns an encoded query string or form without the ignored fields of this kind: unchanged if there are none,
// or if it cannot be read.
func withoutFields(encoded string, ignored []*place, kind string) string {
	var names []string
	for _, p := range ignored {
		if p.kind == kind {
			names = append(names, p.name)
		}
	}
	if names == nil || strings.Count(encoded, "&") >= mostFields {
		return encoded
	}
	values, err := url.ParseQuery(encoded)
	if err != nil {
		return encoded
	}
	for _, name := range names {
		delete(values, name)
	}
	return values.Encode()
}

var (
	jsonStrings = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	jsonNumbers = regexp.MustCompile(`-?[0-9][-+.0-9Ee]*`)
	jsonTokens  = regexp.MustCompile(jsonStrings.String() + `|` + jsonNumbers.String())
)

// mostNumbers is how many numbers and strings are looked at in order to compare numbers by value. In a body with more, numbers
// are compared as they are written.
const mostNumbers = 10000

// canonical returns data, which is valid JSON, in a form that is the same for the same values: members in order, without those
// that are ignored, without white space, every string and number written in one way. It returns nil if an object has two
// members of one name, because parsers do not agree on which of them counts, or if a string is no Unicode.
func canonical(data []byte, ignored []*place) []byte {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var tree interface{}
	err := d.Decode(&tree)
	if err != nil {
		return nil
	}
	text := encode(tree)
	if members(text) != members(data) || bytes.Contains(text, []byte("\ufffd")) {
		return nil
	}
	changed := false
	for _, p := range ignored {
		if p.kind == kindJSON {
			tree = without(tree, p.path)
			changed = true
		}
	}
	if changed {
		text = encode(tree)
	}
	return withCanonicalNumbers(text)
}

// encode returns tree as JSON. A map's members come in order.
func encode(tree interface{}) []byte {
	text := new(bytes.Buffer)
	e := json.NewEncoder(text)
	e.SetEscapeHTML(false)
	_ = e.Encode(tree) // what was decoded can be encoded
	return bytes.TrimSuffix(text.Bytes(), []byte("\n"))
}

// members returns how many members all objects in valid JSON have.
func members(data []byte) int {
	return bytes.Count(jsonStrings.ReplaceAllLiteral(data, []byte("_")), []byte(":"))
}

// without returns tree without what a pointer points to. An element that leaves its array leaves null behind.
func without(tree interface{}, path []string) interface{} {
	node := tree
	for i, token := range path {
		last := i == len(path)-1
		switch n := node.(type) {
		case map[string]interface{}:
			if last {
				delete(n, token)
				return tree
			}
			node = n[token]
		case []interface{}:
			index, err := strconv.Atoi(token)
			if err != nil || index < 0 || index >= len(n) || strconv.Itoa(index) != token {
				return tree
			}
			if last {
				n[index] = nil
				return tree
			}
			node = n[index]
		default:
			return tree
		}
	}
	return tree
}

// withCanonicalNumbers returns compact JSON with every number written in one way.
func withCanonicalNumbers(text []byte) []byte {
	found := jsonTokens.FindAllIndex(text, mostNumbers+1)
	if len(found) > mostNumbers {
		return text
	}
	var written []byte
	done := 0
	for _, at := range found {
		from, to := at[0], at[1]
		if text[from] == '"' {
			continue
		}
		number := string(text[from:to])
		one := canonicalNumber(number)
		if one != number {
			written = append(written, text[done:from]...)
			written = append(written, one...)
			done = to
		}
	}
	return append(written, text[done:]...)
}

// canonicalNumber returns the one way in which the value of a JSON number is written: its digits without zeros at the ends, and
// the power of ten that they are multiplied by. Short whole numbers stay as they are.
func canonicalNumber(number string) string {
	if len(number) < 16 && number != "-0" && strings.Trim(number, "-0123456789") == "" {
		return number
	}
	digits, exponent, _ := strings.Cut(strings.ToLower(number), "e")
	power := 0
	if exponent != "" {
		var err error
		power, err = strconv.Atoi(exponent)
		if err != nil || power > 1<<30 || power < -1<<30 { // as it is: nobody writes that number in two ways
			return number
		}
	}
	digits, negative := strings.CutPrefix(digits, "-")
	whole, fraction, _ := strings.Cut(digits, ".")
	power -= len(fraction)
	digits = strings.TrimLeft(whole+fraction, "0")
	if digits == "" {
		return "0"
	}
	short := strings.TrimRight(digits, "0")
	power += len(digits) - len(short)
	sign := ""
	if negative {
		sign = "-"
	}
	if power >= 0 && len(sign)+len(short)+power < 16 {
		return sign + short + strings.Repeat("0", power)
	}
	return sign + short + "e" + strconv.Itoa(power)
}
