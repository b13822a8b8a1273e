package idem

import (
	"errors"
	"strings"
	"testing"
)

func TestForeignHashesAreNoPasswords(t *testing.T) {
	for _, password := range []string{
		"$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC", "$2a$10$x", "$2b$10$x", "$2x$10$x", "$2$10$x", "$$2y$$05$$c4WoMPo3SXsafkva",
		"$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/", "$APR1$r31.....$HqJZimcKQFAMYayBlzkrA/", "$1$salt$hash", "$5$salt$hash", "$5$rounds=5000$salt$hash", "$6$salt$hash",
		"$7$C6..../....SodiumChloride$x", "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7", "$gy$j9T$x$y", "$md5,rounds=904$x$$y", "$sha1$40000$x$y",
		"$argon2i$v=19$m=16$x$y", "$argon2d$v=19$x", "$argon2id$v=19$m=65536,t=3,p=4$x$y", "$argon2$x", "$scrypt$ln=17,r=8,p=1$x$y", "$bcrypt-sha256$v=2,t=2b,r=12$x$y",
		"$pbkdf2-sha256$6400$x$y", "$pbkdf2$x$y", "$P$984478476IagS59wHZvyQMArzfx58u.", "$H$984478476IagS59wHZvyQMArzfx58u.", "$S$C33783772bRXEx1aCsvY.dqgaaSu76XmVlKrW9Qu8IQlvxHlmzLf",
		"{CRYPT}$6$salt$hash", "{crypt}x", "{SSHA}c2VjcmV0d29yZA==", "{ssha256}x", "{MD5}x", "{SMD5}x", "{SHA512}x", "{sha}+PY/+o41iAewg7IitdqgVx9OCq0=", "{sha256}00", "{BLF-CRYPT}$2y$x", "{PLAIN}x",
		"{PBKDF2-SHA256}x", "{SHA256.HEX}x", "{ARGON2}$argon2id$x", "traefik:a2688e031edb4be6a3797f3882655c05", "A realm:A2688E031EDB4BE6A3797F3882655C05", " $2y$05$x",
		`\$2y\$05\$c4WoMPo3SXsafkva`, "'$2y$05$c4WoMPo3SXsafkva'", `"$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/"`, "bcrypt$$2b$12$x", "pbkdf2_sha256$600000$x$y",
		"scrypt:32768:8:1$x$y", "sha1$salt$x", "SCRAM-SHA-256$4096:x$y:z",
	} {
		_, err := parseLogin("ops:" + password)
		if !errors.Is(err, errLogin) || strings.Contains(err.Error(), password) {
			t.Errorf("%s is taken for a password: %v", password, err)
		}
	}
	for _, password := range []string{"$ecret", "$$$", "$2 a day", "$money$", "$2cheap$4me", "$a$b", "$5", "{curly", "{}", "{a b}c", "}{", "a:b:c", "pass$2y$05$x", "$TR0NG!pass$word-with spaces in it", "a2688e031edb4be6a3797f3882655c05"} {
		l, err := parseLogin("ops:" + password)
		if err != nil || (logins{l}).find("ops", password) != l {
			t.Errorf("the password %q is refused: %v", password, err)
		}
	}
}
