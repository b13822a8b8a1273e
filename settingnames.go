package idem

import (
	"fmt"
	"reflect"
	"regexp"
	"sort"
	"strings"
)

// refuseUnknown refuses settings that do not exist. Traefik leaves them over when it decodes, and says nothing: after a typing
// error in redis.endpoints, every Traefik would keep its keys in its own memory. The error names no values, which may be secrets, nor
// what has got where a name should be and looks like none.
func (k *check) refuseUnknown(c *Config) {
	names := settingNames("", reflect.TypeOf(*c))
	k.leftover("", c.Rest, names)
	k.leftover("redis.", c.Redis.Rest, names)
	k.leftover("redis.tls.", c.Redis.TLS.Rest, names)
	k.leftover("redis.sentinel.", c.Redis.Sentinel.Rest, names)
	k.leftover("stats.", c.Stats.Rest, names)
}

// namesSetting matches what may be a setting's name with a typing error.
var namesSetting = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// leftover refuses the first setting left over in a section. section is its name with a dot at the end, or empty.
func (k *check) leftover(section string, rest map[string]interface{}, names []string) {
	var extra []string
	for name := range rest {
		extra = append(extra, section+name)
	}
	if len(extra) == 0 || k.err != nil {
		return
	}
	sort.Strings(extra)
	unknown := extra[0]
	if !namesSetting.MatchString(unknown) {
		unknown = section + "…"
	}
	near := nearest(unknown, names)
	if near != "" {
		k.err = fmt.Errorf("%w: %s: there is no such setting; the nearest that is allowed is %s", ErrConfig, unknown, near)
		return
	}
	var allowed []string
	for _, name := range names {
		inside, within := strings.CutPrefix(name, section)
		if within && !strings.Contains(inside, ".") {
			allowed = append(allowed, name)
		}
	}
	k.err = fmt.Errorf("%w: %s: there is no such setting; allowed: %s", ErrConfig, unknown, strings.Join(allowed, ", "))
}

// settingNames returns the names of all settings in a struct of them, and of the sections that it has.
func settingNames(section string, settings reflect.Type) []string {
	var names []string
	for i := 0; i < settings.NumField(); i++ {
		field := settings.Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "" { // Rest
			continue
		}
		names = append(names, section+name)
		if field.Type.Kind() == reflect.Struct {
			names = append(names, settingNames(section+name+".", field.Type)...)
		}
	}
	return names
}

// nearest returns the name that was probably meant: a few letters differ, or it is in another section. It returns "" if no name
// is near.
func nearest(unknown string, names []string) string {
	best, leastEdits, leastWhole := "", len(letters(lastPart(unknown)))*2/3+1, 0
	for _, name := range names {
		whole := edits(letters(unknown), letters(name))
		least := smaller(whole, edits(letters(lastPart(unknown)), letters(lastPart(name)))+1)
		if least < leastEdits || (least == leastEdits && best != "" && whole < leastWhole) {
			best, leastEdits, leastWhole = name, least, whole
		}
	}
	return best
}

// lastPart is a setting's name within its section.
func lastPart(name string) string {
	return name[strings.LastIndex(name, ".")+1:]
}

// letters returns a name in lower case, without separators between words. Traefik ignores case too.
func letters(name string) string {
	return strings.ToLower(strings.NewReplacer(".", "", "_", "", "-", "", " ", "").Replace(name))
}

// edits returns the Levenshtein distance of two texts: how many letters must be inserted, deleted or replaced.
func edits(from, to string) int {
	row := make([]int, len(to)+1) // distances of from, as far as it has been read, to each beginning of to
	for j := range row {
		row[j] = j
	}
	for i := 0; i < len(from); i++ {
		diagonal := row[0]
		row[0] = i + 1
		for j := 0; j < len(to); j++ {
			least := diagonal
			if from[i] != to[j] {
				least = smaller(diagonal, smaller(row[j], row[j+1])) + 1
			}
			diagonal = row[j+1]
			row[j+1] = least
		}
	}
	return row[len(to)]
}

func smaller(a, b int) int {
	if a < b {
		return a
	}
	return b
}
