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

// ordinaryTypes are media types in the form that mediaType returns, so that those of most requests need not be parsed.
var ordinaryTypes = map[string]bool{
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

// fingerprint returns the SHA-256 of what two requests must have in common to be the same: identity, query string, media type,
// conditions, range, and body, unless same and ignore say otherwise.
func fingerprint(h *handler, r *http.Request, identity string, body []byte) string {
	if h.comparison != nil {
		return fingerprintAs(h, h.comparison, r, identity, body)
	}
	head, boundary := fingerprintHead(r, identity)
	return sumBody(h, head, boundary, body)
}

// conditionHeaders are the headers in a fingerprint besides Content-Type.
var conditionHeaders = []string{"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range", "Range"}

// fingerprintHead returns what a fingerprint covers before the body, and the boundary of a multipart body.
func fingerprintHead(r *http.Request, identity string) ([]byte, string) {
	header := r.Header
	types := header["Content-Type"]
	boundary := ""
	if len(types) == 1 && !ordinaryTypes[types[0]] {
		media, parts := mediaType(types[0])
		types = []string{media}
		boundary = parts
	}
	return fmt.Appendf(nil, sameFormat, identity, r.URL.RawQuery, types, header["If-Match"], header["If-None-Match"], header["If-Modified-Since"], header["If-Unmodified-Since"], header["If-Range"], header["Range"], ""), boundary
}

// mediaType returns the normal form of a media type, by the rules of comparison in RFC 9110, section 8.3.1, and the boundary of
// a multipart body. The normal form leaves out the boundary, because clients choose a new one for each try. What is not a media
// type is returned unchanged, and so is one whose boundary is not valid (RFC 2046, section 5.1.1).
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

// longestBoundary is the longest boundary, in bytes (RFC 2046, section 5.1.1).
const longestBoundary = 70

// part replaces each boundary in a body that is compared.
const part = "\n--\x00part"

// sumBody returns the fingerprint of a request with this head and body, which readBody has read.
func sumBody(h *handler, head []byte, boundary string, body []byte) string {
	sum := sha256.New()
	switch {
	case boundary == "":
	case bytes.Contains(body, []byte(part[1:])): // part must not occur in the body itself
		fmt.Fprintf(sum, "parts%q", boundary)
	default:
		sum.Write([]byte("parts"))
		body = withoutBoundary(body, boundary, int(h.maxRequestBody))
	}
	sum.Write(head)
	sum.Write(body)
	return string(sum.Sum(nil))
}

// withoutBoundary returns body with each boundary at the beginning of a line replaced by part. A body that was cut after most
// bytes is followed by its length. Its end is left out, because a boundary may be cut there, and because less of the body fits
// in front of the cut if its boundary is longer. The lengths of the boundaries found, and of the last one, are
// subtracted from its length.
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
	length, _ := strconv.Atoi(string(body[most:])) // readBody wrote it; -1 if it is not known
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
