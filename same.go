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
const longestCompared = 128 << 10

// fingerprintAs is fingerprint for a comparison of another kind. It takes the fingerprint of a request that has only what counts.
func fingerprintAs(h *handler, c *comparison, r *http.Request, identity string, body []byte) string {
	counted := &http.Request{URL: &url.URL{}, Header: http.Header{}}
	if c.query {
		counted.URL.RawQuery = withoutFields(r.URL.RawQuery, c.ignored, kindQuery)
	}
	if c.conditions {
		for _, name := range conditionHeaders {
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

// comparedBody returns what is compared of a body. That is the body itself, unless it is JSON, or a form with fields to ignore. JSON
// may come with the media type of a form, as from curl -d.
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
	case !c.asJSON && !isForm:
		return body
	}
	data, isJSON := jsonBody(h, r, body)
	if isJSON && c.asJSON {
		values := canonical(data, c.ignored)
		if values != nil {
			return values
		}
	}
	if isForm && !isJSON {
		return []byte(withoutFields(string(body), c.ignored, kindForm))
	}
	return body
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
	if members(text, data) != members(data, data) || bytes.Contains(text, []byte("\ufffd")) {
		return nil
	}
	changed := false
	for _, p := range ignored {
		if p.kind == kindJSON {
			leaveOut(tree, p.path)
			changed = true
		}
	}
	if changed {
		text = encode(tree)
	}
	return withCanonicalNumbers(text)
}

// encode returns tree as JSON, and a newline. A map's members come in order.
func encode(tree interface{}) []byte {
	text := new(bytes.Buffer)
	e := json.NewEncoder(text)
	e.SetEscapeHTML(false)
	_ = e.Encode(tree) // what was decoded can be encoded
	return text.Bytes()
}

const jsonString = `"(?:[^"\\]|\\.)*"`

var jsonStrings = regexp.MustCompile(jsonString)

// members returns how many members all objects in text have, and how many colons its strings. Both are encodings of the same
// values, except that text may lack members; where original has no escaped colon, they have as many colons in their strings.
func members(text, original []byte) int {
	if bytes.Contains(original, []byte(`\u003`)) {
		text = jsonStrings.ReplaceAllLiteral(text, []byte("_"))
	}
	return bytes.Count(text, []byte(":"))
}

// leaveOut takes out of tree what a pointer points to. An element that leaves its array leaves null behind.
func leaveOut(tree interface{}, path []string) {
	node := tree
	for i, token := range path {
		last := i == len(path)-1
		switch n := node.(type) {
		case map[string]interface{}:
			if last {
				delete(n, token)
				return
			}
			node = n[token]
		case []interface{}:
			index, err := strconv.Atoi(token)
			if err != nil || index < 0 || index >= len(n) || strconv.Itoa(index) != token {
				return
			}
			if last {
				n[index] = nil
				return
			}
			node = n[index]
		default:
			return
		}
	}
}

// Numbers that are written in one way have no zeros at the end of a fraction, no sign if they are 0, and no exponent unless
// they are long: see canonicalNumber. zeros finds most of the others, and exponents what may be among the rest; both find
// strings first, so that nothing is found in them.
var (
	zeros     = regexp.MustCompile(`(` + jsonString + `)|(\.[0-9]*[1-9])0+\b|-(0)(?:\.0+)?([],}\n])|\.0+\b`)
	exponents = regexp.MustCompile(`[0-9][eE]|[0-9.]{16}`)
	tokens    = regexp.MustCompile(jsonString + `|-?[0-9][-+.0-9Ee]*`)
)

// Bounds on what is done to write numbers in one way. In a body with more, those with exponents and long ones stay as they are.
const (
	mostTokens   = 10000 // strings and numbers
	mostRewrites = 1000
)

// withCanonicalNumbers returns JSON that encode has written with every number written in one way.
func withCanonicalNumbers(text []byte) []byte {
	if bytes.Contains(text, []byte("0")) {
		text = zeros.ReplaceAll(text, []byte("$1$2$3$4"))
	}
	if !exponents.Match(text) {
		return text
	}
	found := tokens.FindAllIndex(text, mostTokens+1)
	var written []byte
	done, rewrites := 0, 0
	for _, at := range found {
		from, to := at[0], at[1]
		if text[from] == '"' {
			continue
		}
		number := string(text[from:to])
		if !exponents.MatchString(number) {
			continue
		}
		rewrites++
		written = append(written, text[done:from]...)
		written = append(written, canonicalNumber(number)...)
		done = to
	}
	if len(found) > mostTokens || rewrites > mostRewrites {
		return text
	}
	return append(written, text[done:]...)
}

// longestPlain is how long a number without its sign may be that is written without an exponent.
const longestPlain = 15

// canonicalNumber returns the one way in which the value of a JSON number is written: as a decimal fraction without zeros at its
// end, or if that is long, as its digits and the power of ten that they are multiplied by.
func canonicalNumber(number string) string {
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
	length := len(digits)
	digits = strings.TrimRight(digits, "0")
	power += length - len(digits)
	sign := ""
	if negative {
		sign = "-"
	}
	whole = digits
	fraction = ""
	switch {
	case power >= 0 && len(digits)+power <= longestPlain:
		whole += strings.Repeat("0", power)
	case power < 0 && -power < len(digits) && len(digits) < longestPlain:
		whole = digits[:len(digits)+power]
		fraction = "." + digits[len(digits)+power:]
	case power < 0 && -power >= len(digits) && 2-power <= longestPlain:
		whole = "0"
		fraction = "." + strings.Repeat("0", -power-len(digits)) + digits
	default:
		fraction = "e" + strconv.Itoa(power)
	}
	return sign + whole + fraction
}
