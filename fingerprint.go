package idem

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
)

// usualTypes are media types that are written as mediaType writes them, so that those of most requests need not be read.
var usualTypes = map[string]bool{
	"application/json":                                 true,
	"application/json; charset=utf-8":                  true,
	"application/merge-patch+json":                     true,
	"application/vnd.api+json":                         true,
	"application/octet-stream":                         true,
	"application/x-www-form-urlencoded":                true,
	"application/x-www-form-urlencoded; charset=utf-8": true,
	"application/xml":                                  true,
	"text/plain":                                       true,
	"text/plain; charset=utf-8":                        true,
	"text/xml":                                         true,
}

// fingerprint is the SHA-256 over what makes r, which has these lines of Content-Type and this body, the request that it
// is: its query string, its media type, its conditions and its range, and its body.
func fingerprint(h *handler, r *http.Request, types []string, body []byte) []byte {
	header := r.Header
	switch { // Yaegi takes less for a switch than for ||
	case len(body) > smallBody:
	case types != nil && !usualTypes[types[0]]:
	case header["If-Match"] != nil:
	case header["If-None-Match"] != nil:
	case header["If-Modified-Since"] != nil:
	case header["If-Unmodified-Since"] != nil:
	case header["If-Range"] != nil:
	case header["Range"] != nil:
	default:
		sum := sha256.Sum256(fmt.Appendf(nil, "%q%q%s", r.URL.RawQuery, types, body))
		return sum[:]
	}
	head, boundary := fingerprintHead(r, types)
	return sumBody(h, head, boundary, body)
}

// fingerprintHead is what a fingerprint covers before the body, and the boundary of the body's parts, if it has parts.
// Whatever begins with a quote has no conditions and no parts.
func fingerprintHead(r *http.Request, types []string) ([]byte, string) {
	head := []byte{}
	boundary := ""
	if len(types) == 1 {
		var media string
		media, boundary = mediaType(types[0])
		types = []string{media}
	}
	header := r.Header
	conditions := [][]string{header["If-Match"], header["If-None-Match"], header["If-Modified-Since"], header["If-Unmodified-Since"], header["If-Range"], header["Range"]}
	for _, values := range conditions {
		if values != nil {
			head = fmt.Appendf(nil, "if%q", conditions)
		}
	}
	return fmt.Appendf(head, "%q%q", r.URL.RawQuery, types), boundary
}

// mediaType returns a media type in one way of writing, as RFC 9110, section 8.3.1, compares it, and the boundary of a
// multipart body, which is made anew for each try and so left out of the type. What is no media type stays as it is, and
// so does a boundary that is none (RFC 2046, section 5.1.1).
func mediaType(text string) (string, string) {
	boundary := ""
	media, parameters, err := mime.ParseMediaType(text)
	if err != nil {
		return text, ""
	}
	charset, ok := parameters["charset"]
	if ok {
		parameters["charset"] = strings.ToLower(charset)
	}
	if strings.HasPrefix(media, "multipart/") && len(parameters["boundary"]) <= longestBoundary {
		boundary = parameters["boundary"]
		if boundary != "" {
			parameters["boundary"] = ""
		}
	}
	media = mime.FormatMediaType(media, parameters)
	if media == "" {
		return text, ""
	}
	return media, boundary
}

// longestBoundary is how long a boundary may be (RFC 2046, section 5.1.1).
const longestBoundary = 70

// part stands for each boundary in a body that is compared.
const part = "\n--\x00part"

// sumBody is the fingerprint of a request with this head and body, which takeBody has read.
func sumBody(h *handler, head []byte, boundary string, body []byte) []byte {
	sum := sha256.New()
	switch {
	case boundary == "":
	case bytes.Contains(body, []byte(part[1:])): // so that it stands for nothing else
		fmt.Fprintf(sum, "parts%q", boundary)
	default:
		sum.Write([]byte("parts"))
		body = withoutBoundary(body, boundary, int(h.maxRequestBody))
	}
	sum.Write(head)
	sum.Write(body)
	return sum.Sum(nil)
}

// withoutBoundary returns body with each boundary at the beginning of a line replaced. A body that was cut after most
// bytes has its length behind it. Of such a one the end is left out, where a boundary may be cut, and where a longer one
// leaves less room; and its length counts without the boundaries that are known, and the last.
func withoutBoundary(body []byte, boundary string, most int) []byte {
	line := []byte("\n--" + boundary)
	whole := body
	if len(body) > most {
		whole = body[:most]
	}
	lines := append([]byte("\n"), whole...)
	parts := bytes.Count(lines, line)
	lines = bytes.ReplaceAll(lines, line, []byte(part))
	if len(body) <= most {
		return lines
	}
	length, _ := strconv.Atoi(string(body[most:])) // takeBody wrote it; -1 if it is not known
	if length >= 0 {
		length -= (parts + 1) * len(boundary)
	}
	compared := most - (parts+1)*(len(part)+longestBoundary)
	if compared < most/2 {
		compared = most / 2
	}
	if compared > len(lines) {
		compared = len(lines)
	}
	return strconv.AppendInt(lines[:compared:compared], int64(length), 10)
}
