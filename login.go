package idem

import (
	"crypto/sha1" //nolint:gosec // the format {SHA} of htpasswd files
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/example/traefik-idem/redisclient"
)

// login is a user who may see the statistics, or settle keys too: digests of name and password.
type login struct {
	name   []byte // SHA-256
	digest []byte // SHA-256, or SHA-1 with sha1
	sha1   bool
}

type logins []*login

const loginForm = "name:password, name:{SHA256}<hex digest> or name:{SHA}<base64 digest>; a hash of another kind, such as bcrypt's, is no password"

var errLogin = errors.New("want " + loginForm)

// foreignHash matches hashes of other schemes. They are refused, because as a plain password the hash itself would open the
// page to everybody who reads it. It matches {SCHEME}… (RFC 2307), the schemes of crypt(5) and similar ones, also with $
// doubled as in Docker Compose, and the realm and MD5 of htdigest.
var foreignHash = regexp.MustCompile(`(?i)^\s*(\{[a-z0-9._+/:-]+\}` +
	`|\$+(1|2[abxy]?|3|5|6|7|8|9|y|gy|apr1|md5|sha1|sm3|argon2[a-z]*|scrypt|bcrypt[a-z0-9-]*|pbkdf2[a-z0-9-]*)[$,]` +
	`|\$+[a-z0-9-]+\$[a-z0-9./+=,:$_-]{20,}$` +
	`|["'\\]+\$(2[abxy]?|1|5|6|y|apr1|argon2[a-z]*)\\?\$` + // as quotes and escapes of a shell leave them
	`|(bcrypt|pbkdf2|scrypt|argon2|sha1|sha256|md5|scram)[a-z0-9_:.-]*\$` + // of Django, Werkzeug, PostgreSQL
	`|[^:]*:[0-9a-f]{32}\s*$)`)

// parseLogin reads one login. The error quotes nothing of it, because that may be a password.
func parseLogin(line string) (*login, error) {
	name, password, ok := strings.Cut(line, ":")
	if !ok || name == "" || password == "" {
		return nil, errLogin
	}
	l := &login{name: digest(name)}
	digits, isSHA256 := strings.CutPrefix(password, "{SHA256}")
	encoded, isSHA1 := strings.CutPrefix(password, "{SHA}")
	var err error
	switch {
	case isSHA256:
		l.digest, err = hex.DecodeString(digits)
	case isSHA1:
		l.sha1 = true
		l.digest, err = base64.StdEncoding.DecodeString(encoded)
	case foreignHash.MatchString(password):
		return nil, errLogin
	default:
		l.digest = digest(password)
	}
	if err != nil || (l.sha1 && len(l.digest) != sha1.Size) || (!l.sha1 && len(l.digest) != sha256.Size) {
		return nil, errLogin
	}
	return l, nil
}

// readLogins reads a file with one login a line. Empty lines and those that begin with # are left out.
func readLogins(path string) (logins, error) {
	data, err := redisclient.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all logins
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimRight(line, "\r")
		if line == "" || line[0] == '#' {
			continue
		}
		l, err := parseLogin(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		all = append(all, l)
	}
	return all, nil
}

// find returns the login with this name and password; nil if there is none. It takes as long for a wrong name as for a wrong
// password.
func (all logins) find(name, password string) *login {
	nameDigest, passwordDigest := digest(name), digest(password)
	short := sha1.Sum([]byte(password)) //nolint:gosec // see above
	found := -1
	for i, l := range all {
		given := passwordDigest
		if l.sha1 {
			given = short[:]
		}
		same := subtle.ConstantTimeCompare(l.name, nameDigest) & subtle.ConstantTimeCompare(l.digest, given)
		found = subtle.ConstantTimeSelect(same, i, found)
	}
	if found < 0 {
		return nil
	}
	return all[found]
}

// readUsers returns the logins of those who may see the statistics, and of those who may settle keys. It reads the files each
// time, so that a change needs no restart.
func (h *handler) readUsers() (logins, logins) {
	users, err := withFile(h.statsUsersFile, h.statsUsers)
	if err != nil {
		h.log.printLimited(levelError, "stats.usersFile cannot be used", err)
	}
	admins, err := withFile(h.statsAdminsFile, h.statsAdmins)
	if err != nil {
		h.log.printLimited(levelError, "stats.adminsFile cannot be used", err)
	}
	return users, admins
}

// withFile returns the logins in a file, if there is one, and those of the settings, also when the file cannot be read.
func withFile(file string, configured logins) (logins, error) {
	if file == "" {
		return configured, nil
	}
	fromFile, err := readLogins(file)
	return append(fromFile, configured...), err
}

func digest(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}
